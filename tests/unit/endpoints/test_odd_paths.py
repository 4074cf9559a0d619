from __future__ import annotations

import pytest

from support.engine import says
from support.fakes.engine import http_reply
from support.fleet import Fleet
from support.http_client import send


@pytest.mark.parametrize("path", ["/health", "/readyz", "/docs", "/v1/models"])
async def test_trailing_slash_on_a_path_of_the_proxy_stays_in_the_proxy(fleet: Fleet, path: str) -> None:
    engine = await fleet.engine()
    proxy = await fleet.proxy(engine)
    reply = await send(proxy.url, f"{path}/", method="GET")
    assert (reply.status, reply.headers["location"]) == (307, f"{proxy.url}{path}")
    assert engine.count(f"{path}/") == 0


async def test_icon_for_browsers_comes_from_the_proxy(fleet: Fleet) -> None:
    engine = await fleet.engine()
    proxy = await fleet.proxy(engine)
    assert (await send(proxy.url, "/favicon.ico", method="GET")).status == 204
    assert engine.count("/favicon.ico") == 0


@pytest.mark.parametrize("path", ["//v1/chat/completions", "/v1//chat/completions"])
async def test_two_slashes_at_the_start_are_explained(fleet: Fleet, path: str) -> None:
    engine = await fleet.engine()
    proxy = await fleet.proxy(engine)
    reply = await proxy.post(path)
    assert (reply.status, reply.json["error"]["code"]) == (404, "double_slash")
    assert "base URL" in reply.json["error"]["message"]
    assert not engine.served


async def test_redirect_to_the_engines_own_address_leads_back_to_the_proxy(fleet: Fleet) -> None:
    engine = await fleet.engine()
    engine.answer = says(http_reply(b"", 307, f"Location: {engine.url}/v1/chat/completions\r\n".encode()))
    proxy = await fleet.proxy(engine)
    reply = await proxy.post("/v1/chat/completions/")
    assert (reply.status, reply.headers["location"]) == (307, "/v1/chat/completions")
