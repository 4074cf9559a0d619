from __future__ import annotations

import asyncio

import pytest

from inference_engine_proxy_server.top.client import ProxyClient, Refused, Unreachable, updated
from support.dashboards import ADMIN_KEY, live, snapshot_of
from support.engine import answers_with, hangs
from support.fakes.engine import http_reply
from support.fleet import Fleet
from support.http_client import Call, chat
from support.ports import free_port


async def test_snapshot_is_that_of_an_operator_with_the_key(fleet: Fleet) -> None:
    proxy = await fleet.proxy(await fleet.engine(), admin_key=ADMIN_KEY)

    shown = [await asyncio.to_thread(ProxyClient(f"{proxy.url}/", key).snapshot) for key in (ADMIN_KEY, None)]

    assert [one["audience"] for one in shown] == ["operator", "public"]


async def test_feed_is_followed_to_its_end(fleet: Fleet) -> None:
    proxy = await fleet.proxy(await fleet.engine(), admin_key=ADMIN_KEY)
    feed = ProxyClient(proxy.url, ADMIN_KEY).follow()
    first, second = [await asyncio.to_thread(next, feed) for _ in range(2)]
    assert (first["complete"], second["complete"]) == (True, False)
    assert second.keys() == first.keys()
    assert second["events"] == first["events"]
    assert second["at"] > first["at"]


def test_known_event_is_replaced_and_other_parts_stay() -> None:
    events = [{"id": 1, "count": 1}, {"id": 2, "count": 1}]
    news = {"complete": False, "fleet": 2, "events": [{"id": 1, "count": 2}, {"id": 3, "count": 1}]}

    after = updated({"complete": True, "fleet": 1, "history": 7, "events": events}, news)

    assert after == {
        "complete": False,
        "fleet": 2,
        "history": 7,
        "events": [{"id": 1, "count": 2}, {"id": 2, "count": 1}, {"id": 3, "count": 1}],
    }
    assert updated(after, {"complete": True, "events": []}) == {"complete": True, "events": []}


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
    page = await fleet.engine(answers_with(http_reply(b"data: {}\n\n")))

    for ask in (ProxyClient(engine.url, None).snapshot, lambda: next(ProxyClient(page.url, None).follow(), None)):
        with pytest.raises(Unreachable, match="is no inference-proxy"):
            await asyncio.to_thread(ask)
    with pytest.raises(Unreachable, match="cannot be reached: Connection refused"):
        await asyncio.to_thread(ProxyClient(f"http://127.0.0.1:{free_port()}", None).snapshot)


@pytest.mark.parametrize("url", ["127.0.0.1:8888", "file:///etc/passwd", "http://", "ftp://a"])
def test_url_must_be_one_of_http(url: str) -> None:
    with pytest.raises(ValueError, match="is not a base URL"):
        ProxyClient(url, None)
