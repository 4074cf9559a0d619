"""ADMIN_PORT moves `/admin` and `/metrics` from the client port to a port of their own."""

from __future__ import annotations

import re

import pytest

from end_to_end.conftest import StartProxy
from support.http_client import send
from support.llama_server import LlamaServer
from support.program import Proxy

KEY = "key-of-the-operators"
BEARER = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture
def proxy(start_proxy: StartProxy, shared_server: LlamaServer) -> Proxy:
    return start_proxy(shared_server, ADMIN_PORT="0", ADMIN_KEY=KEY)


@pytest.fixture
def admin_url(proxy: Proxy) -> str:
    found = re.search(r"listening on (http://\S+) for operators", proxy.events)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("path", ["/metrics", "/admin", "/admin/keys"])
async def test_client_port_has_no_operator_paths(proxy: Proxy, path: str) -> None:
    reply = await send(proxy.url, path, headers=BEARER)

    assert (reply.status, reply.json["error"]["code"]) == (404, "not_here")


async def test_admin_port_serves_operator_paths(admin_url: str) -> None:
    assert (await send(admin_url, "/admin/keys", headers=BEARER)).json == {"keys": [], "limits_cover": "process"}
    assert (await send(admin_url, "/admin/keys")).status == 401
    assert (await send(admin_url, "/metrics")).status == 200
    assert (await send(admin_url, "/readyz")).status == 200


async def test_both_ports_serve_the_page_of_the_dashboard(admin_url: str, proxy: Proxy) -> None:
    for url in (admin_url, proxy.url):
        page = await send(url, "/", headers={"Accept": "text/html"})
        assert b'src="dashboard/page/app.js"' in page.body
        assert (await send(url, "/dashboard/page/app.js")).status == 200
    assert (await send(admin_url, "/dashboard/snapshot", headers=BEARER)).json["admin_key"] == "accepted"
    assert (await send(proxy.url, "/dashboard/snapshot")).json["admin_key"] == "unset"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/chat/completions"),
        ("GET", "/v1/models"),
        ("GET", "/props"),
        ("POST", "/health"),
        ("POST", "/metrics"),
        ("GET", "/x"),
    ],
)
async def test_admin_port_reaches_no_engine(admin_url: str, proxy: Proxy, method: str, path: str) -> None:
    reply = await send(admin_url, path, method=method, headers=BEARER)

    assert (reply.status, reply.json["error"]["code"]) == (404, "not_here")
    assert "x-backend" not in reply.headers
