"""`/dashboard/pulse`: a stream of small events, which shows whether proxies in front hold streams back.

The feed of the dashboard cannot show that: it asks NGINX not to buffer, and its events are large enough to fill
buffers. Measured on NGINX 1.22: with its defaults (buffering, and HTTP/1.0 to servers) it holds these events until the
end. Over HTTP/1.1 it holds nothing, because chunks pass at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from inference_engine_proxy_server.errors import CapacityError

__all__ = ["BEATS", "PAUSE_SECONDS", "pulse_router"]

BEATS = 12
PAUSE_SECONDS = 0.5

_MOST = 8  # at a time: anyone may ask
_EVENTS = "text/event-stream"
_FIELDS = {"cache-control": "no-store"}  # without X-Accel-Buffering, as engines send their streams


def pulse_router(instance: str) -> APIRouter:
    """The endpoint; ``instance`` is the name of the proxy, by which a reader sees which one it has reached."""
    router = APIRouter()
    open_now = 0

    async def beats() -> AsyncIterator[bytes]:
        nonlocal open_now
        open_now += 1
        try:
            for _ in range(BEATS):
                yield b"data: %b\n\n" % msgspec.json.encode({"at": time.time(), "instance": instance})
                await asyncio.sleep(PAUSE_SECONDS)
        finally:
            open_now -= 1

    @router.get("/dashboard/pulse", tags=["dashboard"], summary="Twelve small events in six seconds",
                response_class=StreamingResponse,
                responses={200: {"content": {_EVENTS: {}}}, 503: {"description": "Too many readers"}},
                )  # fmt: skip
    async def pulse(request: Request) -> Response:
        if request.state.is_head:
            return Response(media_type=_EVENTS, headers=_FIELDS)
        if open_now >= _MOST:
            message = "Too many clients read this stream."
            raise CapacityError(message, code="too_many_viewers", retry_after_seconds=BEATS * PAUSE_SECONDS)
        return StreamingResponse(beats(), media_type=_EVENTS, headers=_FIELDS)

    return router
