from __future__ import annotations

from typing import Any

from support.fleet import Fleet
from support.live_proxy import Proxy
from support.ports import unused_url
from support.waiting import eventually


async def _listing(proxy: Proxy) -> dict[str, Any]:
    reply = await proxy.http.get("/v1/models")
    assert (reply.status_code, reply.headers["content-type"]) == (200, "application/json")
    listing: dict[str, Any] = reply.json()
    return listing


async def _ids(proxy: Proxy) -> list[str]:
    return [entry["id"] for entry in (await _listing(proxy))["data"]]


async def test_each_model_of_the_fleet_has_one_entry(fleet: Fleet) -> None:
    first = await fleet.engine(models=[{"id": "a"}, {"id": "b"}])
    second = await fleet.engine(owner="vllm", models=[{"id": "b"}, {"id": "c"}])
    proxy = await fleet.proxy(first, second)

    assert await _ids(proxy) == ["a", "b", "c"]


async def test_entries_are_unchanged_from_the_engine(fleet: Fleet) -> None:
    entry = {"id": "a", "object": "model", "meta": {"n_ctx": 2048, "size": 2**60}, "root": None, "x/é": [1.5, "\u2028"]}
    proxy = await fleet.proxy(await fleet.engine(models=[entry]))

    assert await _listing(proxy) == {"object": "list", "data": [entry | {"owned_by": "llamacpp"}]}


async def test_page_of_any_origin_may_read_the_list(fleet: Fleet) -> None:
    proxy = await fleet.proxy(await fleet.engine())

    reply = await proxy.http.get("/v1/models", headers={"Origin": "http://page"})

    assert reply.headers["access-control-allow-origin"] == "*"
    assert reply.headers["access-control-expose-headers"] == "x-request-id"


async def test_models_of_a_busy_backend_are_listed(fleet: Fleet) -> None:
    proxy = await fleet.proxy(await fleet.engine(processing=7))

    assert await _ids(proxy) == ["m"]


async def test_models_of_a_dead_backend_are_gone(fleet: Fleet) -> None:
    stays, dies = await fleet.engine(models=[{"id": "a"}]), await fleet.engine(models=[{"id": "b"}])
    proxy = await fleet.proxy(stays, dies, refresh_seconds=0.05)
    assert await _ids(proxy) == ["a", "b"]

    await dies.stop()

    await eventually(lambda: _lists(proxy, ["a"]))


async def test_entry_of_the_live_backend_is_shown_when_a_dead_one_had_the_model_too(fleet: Fleet) -> None:
    dies = await fleet.engine(models=[{"id": "a", "at": "first"}])
    stays = await fleet.engine(models=[{"id": "a", "at": "second"}])
    proxy = await fleet.proxy(dies, stays, refresh_seconds=0.05)
    assert (await _listing(proxy))["data"][0]["at"] == "first"

    await dies.stop()

    await eventually(lambda: _shows_second(proxy))


async def test_fleet_without_a_live_backend_has_an_empty_list(fleet: Fleet) -> None:
    proxy = await fleet.proxy(unused_url())

    assert await _listing(proxy) == {"object": "list", "data": []}


async def _lists(proxy: Proxy, ids: list[str]) -> bool:
    return await _ids(proxy) == ids


async def _shows_second(proxy: Proxy) -> bool:
    return [entry["at"] for entry in (await _listing(proxy))["data"]] == ["second"]
