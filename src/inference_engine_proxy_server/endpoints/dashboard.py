"""`/dashboard`: what the dashboard shows, once or every second. `/admin`: its command, and the settings in force.

Operators see everything; others see what `/health` shows them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Path, Request, Response
from fastapi.responses import StreamingResponse

from inference_engine_proxy_server.config.configuration import Configuration
from inference_engine_proxy_server.config.settings import Settings, as_variable
from inference_engine_proxy_server.dashboard.audience import Audience
from inference_engine_proxy_server.dashboard.cancelling import Cancelling
from inference_engine_proxy_server.dashboard.feed import Feed
from inference_engine_proxy_server.dashboard.reporter import Reporter
from inference_engine_proxy_server.errors import ClientError

__all__ = ["dashboard_router", "described_settings"]

_EVENTS = "text/event-stream"
_FIELDS = {"cache-control": "no-store", "x-accel-buffering": "no", "x-content-type-options": "nosniff"}
_REFUSED: dict[int | str, dict[str, Any]] = {401: {"description": "The key is not ADMIN_KEY"}}
_CANCEL_RESPONSES: dict[int | str, dict[str, Any]] = {
    401: {},
    404: {"description": "There is no such request, or ADMIN_KEY is not set"},
}
_RequestId = Annotated[str, Path(pattern="^[A-Za-z0-9._-]{1,128}$", description="The value of x-request-id.")]


def dashboard_router(
    reporter: Reporter,
    feed: Feed,
    cancelling: Cancelling,
    configuration: Callable[[], Configuration],
    *,
    hides_names: bool,
) -> APIRouter:
    """The endpoints of the dashboard.

    Args:
        reporter: makes snapshots.
        feed: sends them to viewers.
        cancelling: cancels live requests.
        configuration: what is in force.
        hides_names: show the addresses of backends only to clients with a key; number them for others.
    """
    router = APIRouter()

    def audience_of(request: Request) -> Audience:
        return Audience.of(request.state.access, hides_names=hides_names)

    @router.get("/dashboard/snapshot", tags=["dashboard"], summary="The state of the whole proxy, as the page shows it",
                response_class=Response, responses=_REFUSED)  # fmt: skip
    async def snapshot(request: Request) -> Response:
        audience = audience_of(request)
        moment = await (reporter.moment(with_requests=True) if audience.is_operators else reporter.recent_moment())
        return Response(msgspec.json.encode(moment.as_json(audience)), media_type="application/json", headers=_FIELDS)

    @router.get("/dashboard/feed", tags=["dashboard"], summary="The same every second, as server-sent events",
                response_class=StreamingResponse,
                responses={**_REFUSED, 200: {"content": {_EVENTS: {}}}, 503: {"description": "Too many viewers"}},
                )  # fmt: skip
    async def follow(request: Request) -> Response:
        audience = audience_of(request)
        if request.state.is_head:
            return Response(media_type=_EVENTS, headers=_FIELDS)
        feed.require_room(audience)
        return StreamingResponse(_frames(feed, audience), media_type=_EVENTS, headers=_FIELDS)

    _add_commands(router, cancelling, configuration)
    return router


def _add_commands(router: APIRouter, cancelling: Cancelling, configuration: Callable[[], Configuration]) -> None:
    @router.post("/admin/requests/{request_id}/cancel", tags=["admin"],
                 summary="End a request that waits or is being answered", responses=_CANCEL_RESPONSES)  # fmt: skip
    async def cancel(request_id: _RequestId) -> dict[str, Any]:
        cancelled = await cancelling.cancel(request_id)
        if not cancelled.requests:
            message = f"There is no request {request_id!r} in progress."
            if cancelled.silent:
                message = f"{message} These workers did not answer: {', '.join(map(str, cancelled.silent))}."
            raise ClientError(message, status=404, code="no_such_request")
        return {"id": request_id, "cancelled": cancelled.requests, "silent_workers": list(cancelled.silent)}

    @router.get("/admin/settings", tags=["admin"], summary="The settings in force, without secrets",
                responses={401: {}, 404: {"description": "ADMIN_KEY is not set"}})  # fmt: skip
    async def settings() -> dict[str, Any]:
        return {"settings": described_settings(configuration())}


async def _frames(feed: Feed, audience: Audience) -> AsyncIterator[bytes]:
    seat = feed.open(audience)
    try:
        async for frame in seat.frames():
            yield frame
    finally:
        feed.leave(seat)


def described_settings(configuration: Configuration) -> list[dict[str, Any]]:
    """Each setting: its name, value, default, source and description; secrets are masked."""
    settings = configuration.settings
    return [
        {
            "name": name.upper(),
            "value": _plain(getattr(settings, name)),
            "default": _plain(field.default),
            "source": configuration.origins.get(name.upper(), "default"),
            "description": field.description,
        }
        for name, field in Settings.model_fields.items()
    ]


def _plain(value: object) -> object:
    """The value of a setting as JSON has it, without secrets."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else as_variable(value)
