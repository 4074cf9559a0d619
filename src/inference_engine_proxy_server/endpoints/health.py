"""`/health`: the state of the fleet. `/livez`: whether this process works. `/readyz`: whether to send it requests."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request, Response

from inference_engine_proxy_server.endpoints.backend_facts import facts_of
from inference_engine_proxy_server.fleet.fleet import Fleet
from inference_engine_proxy_server.fleet.snapshot import BackendSnapshot, FleetSnapshot

__all__ = ["health_router"]


def health_router(fleet: Fleet, is_draining: Callable[[], bool], *, names_need_key: bool) -> APIRouter:
    """The health endpoints over ``fleet``.

    Args:
        fleet: the fleet.
        is_draining: whether this process is stopping.
        names_need_key: whether only clients with a key see the addresses of backends; others see numbers.
    """
    router = APIRouter(tags=["health"])

    @router.get("/health", summary="State of every backend, from memory; always 200")
    async def health(request: Request) -> dict[str, Any]:
        return _described(fleet.snapshot(), is_hidden=names_need_key and request.state.access is None)

    @router.get("/livez", summary="200 while the process works")
    async def livez() -> dict[str, str]:
        return {"status": "ok"}

    @router.get(
        "/readyz",
        summary="200 if at least one backend is live and this process is not stopping, else 503",
        responses={503: {}},
    )
    async def readyz(response: Response) -> dict[str, str]:
        if not is_draining() and fleet.snapshot().live:
            return {"status": "ok"}
        response.status_code = 503
        return {"status": "unavailable"}

    return router


def _described(fleet: FleetSnapshot, *, is_hidden: bool) -> dict[str, Any]:
    rows = [(f"backend-{at}" if is_hidden else backend.url, backend) for at, backend in enumerate(fleet.backends, 1)]
    available = [name for name, backend in rows if backend.takes_requests]
    status = "unavailable" if not available else "ok" if len(available) == len(rows) else "degraded"
    return {
        "status": status,
        "available_backends": available,
        "total_backends": len(rows),
        "timestamp": time.time(),
        "details": [{"backend": name, **_details(backend)} for name, backend in rows],
    }


def _details(backend: BackendSnapshot) -> dict[str, Any]:
    reported = backend.reported
    return {
        "ready": backend.takes_requests,
        "live": backend.is_live,
        **facts_of(backend),
        "metrics": {
            "timestamp": backend.reported_at,
            "requests_processing": reported.requests_processing or 0.0,
            "requests_waiting": reported.requests_waiting or 0.0,
            "ready": backend.takes_requests,
            **reported.figures,
        },
    }
