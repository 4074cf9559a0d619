"""`/`: a page for browsers, JSON with links for programs."""

from __future__ import annotations

import base64
import hashlib
import re
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
    fields = {"vary": "accept", "cache-control": "no-cache", "x-content-type-options": "nosniff"}
    page_fields = {**fields, "content-security-policy": _policy(page), "referrer-policy": "no-referrer"}
    router = APIRouter(tags=["welcome"])

    @router.get("/", summary="A page that shows the fleet; JSON with links for programs", response_class=Response)
    async def welcome(request: Request) -> Response:
        if "text/html" in request.headers.get("accept", ""):
            return HTMLResponse(page, headers=page_fields)
        return JSONResponse(greeting, headers=fields)

    @router.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        return Response(status_code=204, headers={"cache-control": "max-age=86400"})  # browsers ask for one

    return router


def _policy(page: str) -> str:
    """A content security policy: the page may run its script, use its style and call this proxy, but nothing else."""
    return (
        f"default-src 'none'; script-src {_hash_of('script', page)}; style-src {_hash_of('style', page)}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hash_of(element: str, page: str) -> str:
    (content,) = re.findall(f"<{element}>(.*?)</{element}>", page, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
