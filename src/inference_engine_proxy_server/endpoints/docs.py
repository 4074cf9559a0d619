"""`/docs` and `/redoc`: FastAPI's pages, with scripts from an installed package instead of from a CDN.

They work without the internet, and no third-party script runs under this address.
"""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter, Request, Response
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.responses import FileResponse, RedirectResponse

__all__ = ["docs_router"]

_TITLE = "inference-engine-proxy-server"
_DESCRIPTION = "openapi.json"  # relative, as all addresses here, so that a path prefix in front of this proxy works
_REDOC = "redoc.standalone.js"
_ASSETS = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    _REDOC: "text/javascript",
    "favicon.png": "image/png",
}
# ReDoc names this address for the logo in its menu. The page's policy would block it, and browsers would log that.
_LOGO_ON_CDN = b"https://cdn.redoc.ly/redoc/logo-mini.svg"
_LOGO = b"docs/favicon.png"
_ICON = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16"><rect width="16" height="16" rx="4" fill="#4f46e5"/>\
<path d="M3 8h4m0 0 4-4m-4 4 4 4M7 8h6" stroke="#fff" stroke-width="1.5" fill="none"/></svg>
"""
_PAGE_FIELDS = {
    # Both pages have inline scripts; ReDoc has inline styles, and searches in a worker created from a blob.
    "content-security-policy": "default-src 'none'; connect-src 'self'; img-src 'self' data:; font-src 'self' data:; "
    "script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; worker-src blob:; "
    "base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
}
_ASSET_FIELDS = {"cache-control": "max-age=86400", "x-content-type-options": "nosniff"}


def docs_router() -> APIRouter:
    """The two pages, their files, and the icon that browsers ask for on their own."""
    router = APIRouter(include_in_schema=False)

    @router.get("/docs")
    async def swagger_ui(request: Request) -> Response:
        if _has_slash(request):
            return RedirectResponse("../docs")
        page = get_swagger_ui_html(
            openapi_url=_DESCRIPTION,
            title=_TITLE,
            swagger_js_url="docs/swagger-ui-bundle.js",
            swagger_css_url="docs/swagger-ui.css",
            swagger_favicon_url="docs/favicon.png",
        )
        page.headers.update(_PAGE_FIELDS)
        return page

    @router.get("/redoc")
    async def redoc(request: Request) -> Response:
        if _has_slash(request):
            return RedirectResponse("../redoc")
        page = get_redoc_html(
            openapi_url=_DESCRIPTION,
            title=_TITLE,
            redoc_js_url=f"docs/{_REDOC}",
            redoc_favicon_url="docs/favicon.png",
            with_google_fonts=False,
        )
        page.headers.update(_PAGE_FIELDS)
        return page

    @router.get("/favicon.ico")
    async def favicon() -> Response:
        return Response(_ICON, media_type="image/svg+xml", headers=_ASSET_FIELDS)

    for name, media_type in _ASSETS.items():
        _add_asset(router, name, media_type)
    return router


def _has_slash(request: Request) -> bool:
    """Whether the path ends with a slash, so that the page's relative addresses would not lead to its files."""
    return bytes(request.scope["raw_path"]).endswith(b"/")


def _add_asset(router: APIRouter, name: str, media_type: str) -> None:
    path = files("fastapi_offline") / "static" / name

    @router.get(f"/docs/{name}")
    async def asset() -> Response:
        if name == _REDOC:
            return Response(
                path.read_bytes().replace(_LOGO_ON_CDN, _LOGO), media_type=media_type, headers=_ASSET_FIELDS
            )
        return FileResponse(str(path), media_type=media_type, headers=_ASSET_FIELDS)
