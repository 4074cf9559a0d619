from __future__ import annotations

import asyncio

import pytest

from inference_engine_proxy_server.top.client import ProxyClient, Refused, Unreachable
from support.dashboards import ADMIN_KEY, live, snapshot_of
from support.engine import hangs
from support.fleet import Fleet
from support.http_client import Call, chat
from support.ports import free_port


async def test_snapshot_is_that_of_an_operator_with_the_key(fleet: Fleet) -> None:
    proxy = await fleet.proxy(await fleet.engine(), admin_key=ADMIN_KEY)

    shown = [await asyncio.to_thread(ProxyClient(f"{proxy.url}/", key).snapshot) for key in (ADMIN_KEY, None)]

    assert [one["audience"] for one in shown] == ["operator", "public"]


async def test_wrong_key_is_refused_in_words(fleet: Fleet) -> None:
    proxy = await fleet.proxy(await fleet.engine(), admin_key=ADMIN_KEY)

    with pytest.raises(Refused, match="The key is not ADMIN_KEY"):
        await asyncio.to_thread(ProxyClient(proxy.url, "wrong").snapshot)


async def test_commands_reach_the_proxy(fleet: Fleet) -> None:
    engine = await fleet.engine(hangs)
    proxy = await fleet.proxy(engine, admin_key=ADMIN_KEY, assemble_replies=False)
    client, name = ProxyClient(proxy.url, ADMIN_KEY), engine.url.removeprefix("http://")
    async with Call(proxy.url, "/v1/chat/completions", chat(), headers={"X-Request-Id": "mine"}) as call:
        call.send()
        await live(proxy, lambda request: request["id"] == "mine")
        await asyncio.to_thread(client.cancel, "mine")
        assert (await call.reply()).status == 503

    for is_draining in (True, False):
        await asyncio.to_thread(lambda: client.drain(name, is_draining=is_draining))  # noqa: B023 - called at once
        assert (await snapshot_of(proxy))["backends"][0]["draining"] is is_draining
    with pytest.raises(Refused, match="There is no request 'mine'"):
        await asyncio.to_thread(client.cancel, "mine")


async def test_other_servers_are_told_from_a_proxy(fleet: Fleet) -> None:
    engine = await fleet.engine()

    with pytest.raises(Unreachable, match="is no inference-proxy"):
        await asyncio.to_thread(ProxyClient(engine.url, None).snapshot)
    with pytest.raises(Unreachable, match="cannot be reached: Connection refused"):
        await asyncio.to_thread(ProxyClient(f"http://127.0.0.1:{free_port()}", None).snapshot)


@pytest.mark.parametrize("url", ["127.0.0.1:8888", "file:///etc/passwd", "http://", "ftp://a"])
def test_url_must_be_one_of_http(url: str) -> None:
    with pytest.raises(ValueError, match="is not a base URL"):
        ProxyClient(url, None)
