"""Sends queue positions to waiting streams as SSE comments, which clients skip.

The first comment commits the reply to status 200 before any engine has answered. Later errors can only be reported by
an event in the stream, and the reply cannot name its backend. Therefore only streams that ask for queue updates get
them, unless the operator enables them for all.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from inference_engine_proxy_server.dispatch.leases import Lease
from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.dispatch.request_queue import QueuedRequest, RequestQueue
from inference_engine_proxy_server.requests.headers import wants_queue_updates

__all__ = ["QueueUpdates"]

_EVERY_SECONDS = 1.0


class QueueUpdates:
    """Sends queue updates.

    Args:
        queue: the queue of waiting requests.
        to_all: whether all streams get updates, not only those that ask for them.
    """

    def __init__(self, queue: RequestQueue[Lease], *, to_all: bool) -> None:
        self._queue = queue
        self._to_all = to_all

    @asynccontextmanager
    async def during(self, request: ProxiedRequest, queued: QueuedRequest[Lease]) -> AsyncIterator[None]:
        """Send updates to ``request`` while it waits as ``queued``, if it is a stream that gets them."""
        if not self._gets_updates(request):
            yield
            return
        task = asyncio.get_running_loop().create_task(self._send(request, queued))
        try:
            yield
        finally:
            task.cancel()  # not awaited: that would swallow a cancellation, or lose the lease

    def _gets_updates(self, request: ProxiedRequest) -> bool:
        return (self._to_all or wants_queue_updates(request.head.passed_on)) and request.takes_comments

    async def _send(self, request: ProxiedRequest, queued: QueuedRequest[Lease]) -> None:
        await asyncio.sleep(0)  # the request joins the queue first
        while queued.waits and not request.done:
            position = self._queue.position(queued)
            seconds = self._queue.seconds_for(position)
            eta = b"" if seconds is None else b" eta=%ds" % max(1, round(seconds))
            request.send_comment(b": queued position=%d%b\n\n" % (position, eta))
            await asyncio.sleep(_EVERY_SECONDS)
