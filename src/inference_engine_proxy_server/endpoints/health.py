"""`/health`: the state of the fleet. `/livez`: whether this process works. `/readyz`: whether to send it requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request, Response

from inference_engine_proxy_server.endpoints.health_report import HealthReport
from inference_engine_proxy_server.fleet.fleet import Fleet

__all__ = ["health_router"]


def health_router(fleet: Fleet, report: HealthReport, is_draining: Callable[[], bool]) -> APIRouter:
    """The health endpoints over ``fleet``.

    Args:
        fleet: the fleet.
        report: the answer of ``/health``.
        is_draining: whether this process is stopping.
    """
    router = APIRouter(tags=["health"])

    @router.get("/health", summary="State of every backend, from memory; always 200")
    async def health(request: Request) -> dict[str, Any]:
        return report.report(has_key=request.state.access is not None)

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
