"""How the fleet is (`/health`), whether this process works (`/livez`), and whether to send it requests (`/readyz`)."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request, Response

from inference_engine_proxy_server.dispatch.backend_pool import BackendPool
from inference_engine_proxy_server.endpoints.backend_facts import facts_of
from inference_engine_proxy_server.fleet.backend import Backend

__all__ = ["health_router"]


def health_router(pool: BackendPool, is_draining: Callable[[], bool], *, names_need_key: bool) -> APIRouter:
    """The health endpoints over ``pool``.

    Args:
        is_draining: whether this process has been told to stop.
        names_need_key: only who has a key of a client sees the addresses of backends; for others they have numbers.
    """
    router = APIRouter(tags=["health"])

    @router.get("/health", summary="State of every backend, from memory; always 200")
    async def health(request: Request) -> dict[str, Any]:
        is_hidden = names_need_key and request.state.access is None
        names = {backend: f"backend-{i}" if is_hidden else backend.url for i, backend in enumerate(pool.backends, 1)}
        available = [names[backend] for backend in pool.backends if backend.takes_requests]
        status = "unavailable" if not available else "ok" if len(available) == len(pool.backends) else "degraded"
        return {
            "status": status,
            "available_backends": available,
            "total_backends": len(pool.backends),
            "timestamp": time.time(),
            "details": [{"backend": names[backend], **_details(backend, pool.clock())} for backend in pool.backends],
        }

    @router.get("/livez", summary="200 while the process works")
    async def livez() -> dict[str, str]:
        return {"status": "ok"}

    @router.get(
        "/readyz",
        summary="200 if at least one backend is live and this process is not stopping, else 503",
        responses={503: {}},
    )
    async def readyz(response: Response) -> dict[str, str]:
        if not is_draining() and any(backend.is_live for backend in pool.backends):
            return {"status": "ok"}
        response.status_code = 503
        return {"status": "unavailable"}

    return router


def _details(backend: Backend, now: float) -> dict[str, Any]:
    told = backend.health.told
    return {
        "ready": backend.takes_requests,
        "live": backend.is_live,
        **facts_of(backend, now),
        "metrics": {
            "timestamp": backend.told_at,
            "requests_processing": told.requests_processing or 0.0,
            "requests_waiting": told.requests_waiting or 0.0,
            "ready": backend.takes_requests,
            **told.figures,
        },
    }
