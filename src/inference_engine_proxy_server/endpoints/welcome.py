"""`/`: a page for people, a greeting for programs."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from inference_engine_proxy_server import __version__

__all__ = ["welcome_router"]


def welcome_router() -> APIRouter:
    """``GET /``."""
    page = files("inference_engine_proxy_server.endpoints").joinpath("welcome.html").read_text(encoding="utf-8")
    greeting: dict[str, Any] = {
        "name": "inference-engine-proxy-server",
        "version": __version__,
        "links": {
            "health": "/health",
            "models": "/v1/models",
            "metrics": "/metrics",
            "docs": "/docs",
            "chat": "/v1/chat/completions",
        },
    }
    router = APIRouter(tags=["welcome"])

    @router.get("/", summary="A page that shows the fleet; JSON with links for programs", response_class=Response)
    async def welcome(request: Request) -> Response:
        if "text/html" in request.headers.get("accept", ""):
            return HTMLResponse(page, headers={"content-security-policy": "default-src 'self' 'unsafe-inline'"})
        return JSONResponse(greeting)

    return router
