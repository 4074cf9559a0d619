from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from support.fleet import Fleet

OWN = {
    "/",
    "/health",
    "/livez",
    "/readyz",
    "/v1/models",
    "/v1/models/{model}",
    "/v1/usage",
    "/metrics",
    *(f"/admin/{it}" for it in ("backends", "decisions", "keys", "settings", "usage")),
    "/dashboard/feed",
    "/dashboard/pulse",
    "/dashboard/snapshot",
}
OPERATED = {
    "/admin/backends/{name}/drain",
    "/admin/backends/{name}/undrain",
    "/admin/requests/{request_id}/cancel",
}
OTHER_METHODS = {
    "/admin/backends": {"get", "post"},
    "/admin/backends/{name}": {"delete"},
    "/admin/announced": {"put", "delete"},
}
DESCRIPTIONS = {"/docs", "/redoc", "/openapi.json"}
PROXIED = {
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/rerank",
    "/tokenize",
}


async def _document(fleet: Fleet) -> dict[str, Any]:
    proxy = await fleet.proxy(await fleet.engine())
    reply = await proxy.http.get("/openapi.json")
    assert (reply.status_code, reply.headers["content-type"]) == (200, "application/json")
    document: dict[str, Any] = reply.json()
    return document


async def test_document_describes_own_and_proxied_paths(fleet: Fleet) -> None:
    paths = (await _document(fleet))["paths"]

    assert paths.keys() == OWN | OPERATED | PROXIED | OTHER_METHODS.keys()
    assert {path: set(paths[path]) for path in OTHER_METHODS} == OTHER_METHODS
    assert {path for path, item in paths.items() if item.keys() == {"get"}} == OWN - {"/admin/backends"}
    assert {path for path, item in paths.items() if item.keys() == {"post"}} == OPERATED | PROXIED


async def test_document_is_openapi_3_1(fleet: Fleet) -> None:
    document = await _document(fleet)

    assert re.fullmatch(r"3\.1\.\d+", document["openapi"])
    assert all(document["info"][field] for field in ("title", "version"))
    names = []
    for path, item in document["paths"].items():
        for method, operation in item.items():
            assert operation["responses"], (path, method)
            for status, response in operation["responses"].items():
                assert re.fullmatch(r"[1-5]\d\d|default", status), (path, method)
                assert response["description"], (path, method, status)
            names.append(operation.get("operationId", (path, method)))
    assert len(names) == len(set(names))
    for reference in _references(document):
        target: Any = document
        for step in reference.removeprefix("#/").split("/"):
            target = target[step]


async def test_proxied_paths_accept_fields_that_the_document_does_not_know(fleet: Fleet) -> None:
    paths = (await _document(fleet))["paths"]

    for path in PROXIED:
        body = paths[path]["post"]["requestBody"]
        schema = body["content"]["application/json"]["schema"]
        assert body["required"] is True
        assert schema["type"] == "object"
        assert schema["additionalProperties"] is True
        assert set(schema["required"]) <= schema["properties"].keys()


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
async def test_documentation_pages_need_no_other_host(fleet: Fleet, path: str) -> None:
    engine = await fleet.engine()
    proxy = await fleet.proxy(engine)
    polls = set(engine.asked)
    reply = await proxy.http.get(path)
    assert reply.headers["content-type"] == "text/html; charset=utf-8"

    loaded = re.findall(r"""(?:src|href|spec-url|url)(?:=|: )["']([^"']+)""", reply.text)

    assert "openapi.json" in loaded
    assert len(loaded) >= 3
    assert "//" not in "".join(loaded)
    for address in loaded:
        assert (await proxy.http.get(f"/{address}")).status_code == 200, address
    assert set(engine.asked) == polls
    assert reply.headers["content-security-policy"].startswith("default-src 'none'; connect-src 'self';")
    assert reply.headers["x-content-type-options"] == "nosniff"


async def test_files_of_the_documentation_pages_have_media_types(fleet: Fleet) -> None:
    proxy = await fleet.proxy(await fleet.engine())

    for name, media_type in {
        "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
        "swagger-ui.css": "text/css; charset=utf-8",
        "redoc.standalone.js": "text/javascript; charset=utf-8",
        "favicon.png": "image/png",
    }.items():
        reply = await proxy.http.get(f"/docs/{name}")

        assert (reply.status_code, reply.headers["content-type"]) == (200, media_type)
        assert len(reply.content) == int(reply.headers["content-length"]) > 1000
        assert reply.headers["x-content-type-options"] == "nosniff"


def _references(part: Any) -> list[str]:
    if isinstance(part, dict):
        own = [part["$ref"]] if "$ref" in part else []
        return own + [found for member in part.values() for found in _references(member)]
    return [found for member in part for found in _references(member)] if isinstance(part, list) else []


@pytest.mark.parametrize("name", ["endpoints.md", "zh-TW/endpoints.md"])
def test_page_lists_own_paths_and_no_others(name: str) -> None:
    page = (Path(__file__).parents[3] / "docs" / name).read_text()
    rows = re.findall(r"^\| (`(?:GET|ANY) [^|]*) \|", page, re.MULTILINE)

    assert {path for row in rows for path in re.findall(r"`(?:GET )?(/[^` ]*)`", row)} == OWN | DESCRIPTIONS
    assert "`ANY /...`" in rows


async def test_redoc_names_no_address_of_a_cdn(fleet: Fleet) -> None:
    proxy = await fleet.proxy(await fleet.engine())
    for path in ("/redoc", "/docs/redoc.standalone.js"):
        assert not re.search(r"https?://(cdn\.|fonts\.|unpkg|jsdelivr)", (await proxy.http.get(path)).text)
