"""`/`: the dashboard for browsers, JSON with links for programs. `/dashboard/page/`: the files of the dashboard."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from importlib.resources.abc import Traversable
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from inference_engine_proxy_server import __version__

__all__ = ["FILES_PATH", "page_router"]

FILES_PATH = "/dashboard/page"
"""Path of the files of the dashboard."""

_MEDIA_TYPES = {"js": "text/javascript", "css": "text/css"}
_PLACE_OF_TABLE = "<!-- the table -->"
_UNKNOWN = "\N{EN DASH}"
# The page runs its own files and calls this proxy, but nothing else. No text becomes markup or a script.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types"
)
# Checked with the proxy at each load, so that the files of one page are always of one version.
_FILE_FIELDS = {"cache-control": "no-cache", "x-content-type-options": "nosniff"}
_FIELDS = {**_FILE_FIELDS, "vary": "accept"}
_PAGE_FIELDS = {**_FIELDS, "content-security-policy": _POLICY, "referrer-policy": "no-referrer"}


@dataclass(frozen=True, slots=True)
class _File:
    path: str
    content: bytes
    media_type: str
    etag: str


def page_router(report: Callable[[bool], Mapping[str, Any]]) -> APIRouter:
    """``GET /`` and the files of the page.

    Args:
        report: the answer of ``/health`` for a client, which has an API key or not.
    """
    page = _folder().joinpath("index.html").read_text(encoding="utf-8")
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
    router = APIRouter(tags=["dashboard"])

    @router.get("/", summary="The dashboard; JSON with links for programs", response_class=Response)
    async def welcome(request: Request) -> Response:
        if "text/html" in request.headers.get("accept", ""):
            table = _table(report(request.state.access is not None))
            return HTMLResponse(before + table + after, headers=_PAGE_FIELDS)
        return JSONResponse(greeting, headers=_FIELDS)

    for file in _files(_folder()):
        _add_file(router, file)
    return router


def _folder() -> Traversable:
    return files("inference_engine_proxy_server.endpoints").joinpath("page")


def _files(folder: Traversable, path: str = "") -> Iterator[_File]:
    """The scripts and style sheets below ``folder``."""
    for one in sorted(folder.iterdir(), key=lambda one: one.name):
        if one.is_dir():
            yield from _files(one, f"{path}{one.name}/")
        elif (kind := one.name.rpartition(".")[2]) in _MEDIA_TYPES:
            content = one.read_bytes()
            etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
            yield _File(path + one.name, content, _MEDIA_TYPES[kind], etag)


def _add_file(router: APIRouter, file: _File) -> None:
    fields = {**_FILE_FIELDS, "etag": file.etag}

    @router.get(f"{FILES_PATH}/{file.path}", include_in_schema=False)
    async def asset(request: Request) -> Response:
        if file.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=fields)
        return Response(file.content, media_type=file.media_type, headers=fields)


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
