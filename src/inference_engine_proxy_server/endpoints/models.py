"""`/v1/models`: one list of models for the whole fleet."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from inference_engine_proxy_server.access.gate import Access
from inference_engine_proxy_server.fleet.fleet import Fleet

__all__ = ["models_router"]


def models_router(fleet: Fleet) -> APIRouter:
    """``GET /v1/models`` over ``fleet``."""
    router = APIRouter(tags=["models"])

    @router.get("/v1/models", summary="The models that live backends serve, one entry each")
    async def list_models(request: Request, response: Response) -> dict[str, Any]:
        access: Access | None = request.state.access
        # As with engines, web pages of any origin may read the list.
        response.headers["access-control-allow-origin"] = "*"
        response.headers["access-control-expose-headers"] = "x-request-id"
        entries: dict[str, Any] = {}
        for backend in fleet.snapshot().live:
            for entry in backend.serving.models:
                if access is None or access.permits(entry["id"]):
                    entries.setdefault(entry["id"], entry)
        return {"object": "list", "data": list(entries.values())}

    return router
