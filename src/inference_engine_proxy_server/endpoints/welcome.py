"""`/`: a page for browsers, JSON with links for programs."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from inference_engine_proxy_server import __version__
from inference_engine_proxy_server.endpoints.health_report import HealthReport

__all__ = ["welcome_router"]

_PLACE_OF_TABLE = "<!-- the table -->"
_UNKNOWN = "\N{EN DASH}"


def welcome_router(health: HealthReport) -> APIRouter:
    """``GET /``."""
    page = files("inference_engine_proxy_server.endpoints").joinpath("welcome.html").read_text(encoding="utf-8")
    before, after = page.split(_PLACE_OF_TABLE)
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
            table = _table(health.report(has_key=request.state.access is not None))
            return HTMLResponse(before + table + after, headers=page_fields)
        return JSONResponse(greeting, headers=fields)

    return router


def _table(health: Mapping[str, Any]) -> str:
    """The state of the fleet for browsers without JavaScript. A backend chooses its own reasons and model names."""
    queue = health["queue"]
    head = ("Backend", "State", "Reason", "In flight", "Processing", "Waiting", "Models")
    rows = "".join(f"<tr>{_cells('td', _row(backend))}</tr>\n" for backend in health["details"])
    return (
        f"<p>{len(health['available_backends'])} of {health['total_backends']} backends ready. "
        f"Queue of the proxy: {_count(queue['requests'], queue['limit'])}.</p>\n"
        f"<table><thead><tr>{_cells('th', head)}</tr></thead>\n<tbody>\n{rows}</tbody></table>"
    )


def _row(backend: Mapping[str, Any]) -> Sequence[str]:
    return (
        backend["backend"],
        backend["shown_state"].capitalize(),
        backend["reason"],
        _count(backend["requests_in_flight"], backend["limit"]),
        _count(backend["processing"], backend["slots"]),
        _count(backend["waiting"]),
        ", ".join(backend["models"]),
    )


def _cells(element: str, texts: Sequence[str]) -> str:
    return "".join(f"<{element}>{escape(text)}</{element}>" for text in texts)


def _count(number: float | None, limit: float | None = None) -> str:
    if number is None:
        return _UNKNOWN
    return f"{number:g}" if limit is None else f"{number:g} of {limit:g}"


def _policy(page: str) -> str:
    """A content security policy: the page may run its script, use its style and call this proxy, but nothing else."""
    return (
        f"default-src 'none'; script-src {_hash_of('script', page)}; style-src {_hash_of('style', page)}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hash_of(element: str, page: str) -> str:
    (content,) = re.findall(f"<{element}>(.*?)</{element}>", page, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
