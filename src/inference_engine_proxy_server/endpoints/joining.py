"""`/admin/backends` and `/admin/announced`: backends join and leave while the proxy runs.

Operators add backends with ADMIN_KEY, for good. Engines announce themselves with ANNOUNCE_KEY, for the time of a lease.
The paths are below `/admin`, because that is closed to the outside wherever `/admin` is.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse

from inference_engine_proxy_server.config.added_backends import AnnouncedEntry, JoiningEntry, entry_schema
from inference_engine_proxy_server.config.base_urls import as_base_url
from inference_engine_proxy_server.config.fleet_form import BackendEntry
from inference_engine_proxy_server.endpoints.all_workers import AllWorkers, SiblingAnswers
from inference_engine_proxy_server.endpoints.backend_commands import Move, WaitSeconds
from inference_engine_proxy_server.endpoints.fleet_changes import FleetChanges, Left
from inference_engine_proxy_server.errors import ClientError
from inference_engine_proxy_server.fleet.backend import Backend

__all__ = ["joining_router"]

_MOST_BYTES = 65_536  # of a description

_Url = Annotated[str, Query(description="Its base URL.")]
_Announcer = Annotated[str, Query(description="Whose lease ends.", max_length=64)]

_OFF = {"description": "There is no such backend, or the key that this path needs is not set"}
_WRONG = {"description": "The body describes no backend"}
_TAKEN = {"description": "The backend is configured, or another one has its name"}

Describe = Callable[[Backend, SiblingAnswers], dict[str, Any]]
"""Describes one backend as in ``GET /admin/backends``."""


def joining_router(
    changes: FleetChanges,
    workers: AllWorkers,
    describe: Describe,
    source_of: Callable[[str], str | None],
    *,
    saves: bool,
) -> APIRouter:
    """The endpoints by which backends join and leave.

    Args:
        changes: carries out the commands.
        workers: this worker and its siblings.
        describe: describes a backend.
        source_of: the source of a backend, by its base URL.
        saves: whether there is a file that keeps what operators add.
    """
    router = APIRouter(prefix="/admin", tags=["admin"])
    _add_operators_paths(router, changes, workers, describe, saves=saves)
    _add_announcements(router, changes, workers, source_of)
    return router


def _add_operators_paths(
    router: APIRouter, changes: FleetChanges, workers: AllWorkers, describe: Describe, *, saves: bool
) -> None:
    def saved() -> dict[str, Any]:
        problem = changes.roster.save_problem
        return {"saved": saves and not problem, **({"save_problem": problem} if problem else {})}

    @router.post("/backends", summary="Add a backend, or change one that was added", status_code=201,
                 responses={200: {"description": "It was in the fleet before"}, 400: _WRONG, 401: {}, 404: _OFF,
                            409: _TAKEN, 413: {}},
                 openapi_extra=_body(JoiningEntry))  # fmt: skip
    async def add(request: Request) -> JSONResponse:
        content = await _content(request)
        is_new, backend, siblings = await changes.add(content)
        row = {**describe(backend, siblings), **saved(), **workers.silence(siblings)}
        return JSONResponse(row, 201 if is_new else 200)

    @router.delete("/backends/{name:path}", summary="Remove a backend that was added or announced",
                   responses={401: {}, 404: _OFF, 409: _TAKEN})  # fmt: skip
    async def remove(name: str, wait_seconds: WaitSeconds = 0, move: Move = False) -> dict[str, Any]:
        left = await changes.remove(name, moves=move, wait_seconds=wait_seconds)
        return {**_departed(left), **saved(), **workers.silence(left.siblings)}


def _add_announcements(
    router: APIRouter, changes: FleetChanges, workers: AllWorkers, source_of: Callable[[str], str | None]
) -> None:
    @router.put("/announced", summary="Announce a backend, or renew its lease",
                responses={400: _WRONG, 401: {}, 404: _OFF, 409: _TAKEN, 413: {}},
                openapi_extra=_body(AnnouncedEntry))  # fmt: skip
    async def announce(request: Request) -> dict[str, Any]:
        backend, lease_seconds = await changes.announce(await _content(request))
        return {
            "name": backend.config.name,
            "url": backend.url,
            "state": backend.health.state.value,
            "reason": backend.health.reason,
            "draining": backend.is_draining,
            "source": source_of(backend.url),
            "lease_seconds": lease_seconds,
        }

    @router.delete("/announced", summary="End the lease of a backend, before it stops",
                   responses={400: {}, 401: {}, 404: _OFF})  # fmt: skip
    async def withdraw(
        url: _Url, announcer: _Announcer = "", wait_seconds: WaitSeconds = 0, move: Move = False
    ) -> dict[str, Any]:
        try:
            normal = as_base_url(url)
        except ValueError as error:
            raise ClientError(f"url: {error}.") from None
        left = await changes.withdraw(normal, announcer, moves=move, wait_seconds=wait_seconds)
        return {**_departed(left), **workers.silence(left.siblings)}


def _departed(left: Left) -> dict[str, Any]:
    return {
        "url": left.url,
        "in_fleet": left.source is not None,
        "source": left.source,
        "requests_in_flight": left.requests,
        "safe_to_stop": left.is_safe_to_stop,
    }


async def _content(request: Request) -> object:
    """The body, as JSON."""
    body = await request.body()
    if len(body) > _MOST_BYTES:
        raise ClientError("The description is too long.", status=413, code="body_too_large")
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise ClientError('The body must be a JSON object such as {"url": "http://llm-3:8080"}.') from None


def _body(form: type[BackendEntry]) -> dict[str, Any]:
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": entry_schema(form)}}}}
