from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from anthropic import AsyncAnthropic
from openai import AsyncOpenAI

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


@pytest.mark.parametrize(
    ("default_model", "expected"), [(None, ["b", "a", "c"]), ("c", ["c", "a", "b"]), ("alias", ["c", "a", "b"])]
)
async def test_model_of_requests_that_name_none_comes_first(
    fleet: Fleet, default_model: str | None, expected: list[str]
) -> None:
    vllm = await fleet.engine(owner="vllm", models=[{"id": "a"}])
    first = await fleet.engine(models=[{"id": "b"}])
    second = await fleet.engine(models=[{"id": "c", "aliases": ["alias"]}])
    proxy = await fleet.proxy(vllm, first, second, default_model=default_model)

    assert await _ids(proxy) == expected


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


@pytest.mark.parametrize(
    "name", ["plain", "org/name", "org%2Fname", "a:b", "with%20blank", "100%25", "%C3%A9", "x:latest", "x", "alias"]
)
@pytest.mark.parametrize("prefix", ["/v1/models", "/models"])
async def test_each_model_of_the_list_can_be_retrieved(fleet: Fleet, prefix: str, name: str) -> None:
    ids = ["plain", "org/name", "a:b", "with blank", "100%", "é", "x:latest"]
    models: list[dict[str, Any]] = [{"id": name} for name in ids] + [{"id": "long", "aliases": ["alias"]}]
    proxy = await fleet.proxy(await fleet.engine(models=models))

    reply = await proxy.http.get(f"{prefix}/{name}")

    expected = {"x": "x:latest", "alias": "long"}.get(name, unquote(name))
    assert (reply.status_code, reply.json()["id"], reply.json()["owned_by"]) == (200, expected, "llamacpp")


async def test_key_sees_its_models_under_all_paths(fleet: Fleet, tmp_path: Path) -> None:
    engines = [await fleet.engine(models=[{"id": "a"}]), await fleet.engine(models=[{"id": "b"}])]
    keys = tmp_path / "keys.yaml"
    keys.write_text("keys:\n  - name: few\n    secret: sk-0123456789abcdef\n    models: [a]\n")
    keys.chmod(0o600)
    proxy = await fleet.proxy(*engines, api_keys_file=str(keys))
    key = {"Authorization": "Bearer sk-0123456789abcdef"}
    for path in ("/v1/models", "/models", "/models/", "/v1/models/"):
        assert (await proxy.http.get(path)).status_code == 401
        reply = await proxy.http.get(path, headers=key)
        assert [entry["id"] for entry in reply.json()["data"]] == ["a"]
    assert (await proxy.http.get("/v1/models/a")).status_code == 401
    assert (await proxy.http.get("/v1/models/a", headers=key)).json()["id"] == "a"
    assert (await proxy.http.get("/v1/models/b", headers=key)).status_code == 404


async def test_unknown_model_is_404_if_all_models_are_known(fleet: Fleet) -> None:
    proxy = await fleet.proxy(await fleet.engine())
    reply = await proxy.http.get("/v1/models/other")
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")


async def test_model_of_a_backend_that_is_down_is_503(fleet: Fleet) -> None:
    stays, dies = await fleet.engine(models=[{"id": "a"}]), await fleet.engine(models=[{"id": "b"}])
    proxy = await fleet.proxy(stays, dies, refresh_seconds=0.05)
    await dies.stop()
    await eventually(lambda: _lists(proxy, ["a"]))
    reply = await proxy.http.get("/v1/models/b")
    assert (reply.status_code, "retry-after" in reply.headers) == (503, True)


async def test_anthropic_client_gets_the_members_it_expects(fleet: Fleet) -> None:
    proxy = await fleet.proxy(await fleet.engine(models=[{"id": "a", "created": 86_400}]))
    model = (await proxy.http.get("/v1/models/a", headers={"anthropic-version": "2023-06-01"})).json()
    assert (model["type"], model["display_name"], model["created_at"]) == ("model", "a", "1970-01-02T00:00:00+00:00")


@pytest.mark.parametrize("name", ["a", "org/name", "x:latest"])
async def test_sdks_retrieve_models(fleet: Fleet, name: str) -> None:
    proxy = await fleet.proxy(await fleet.engine(models=[{"id": "a"}, {"id": "org/name"}, {"id": "x:latest"}]))
    async with AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="k") as openai:
        assert (await openai.models.retrieve(name)).id == name
        assert [model.id async for model in openai.models.list()] == ["a", "org/name", "x:latest"]
    async with AsyncAnthropic(base_url=proxy.url, api_key="k") as anthropic:
        assert (await anthropic.models.retrieve(name)).display_name == name
        assert [model.id async for model in anthropic.models.list()] == ["a", "org/name", "x:latest"]


async def _lists(proxy: Proxy, ids: list[str]) -> bool:
    return await _ids(proxy) == ids


async def _shows_second(proxy: Proxy) -> bool:
    return [entry["at"] for entry in (await _listing(proxy))["data"]] == ["second"]


async def test_files_of_the_web_ui_need_no_key_but_props_and_chats_do(fleet: Fleet, tmp_path: Path) -> None:
    keys = tmp_path / "keys.yaml"
    keys.write_text("keys:\n  - name: few\n    secret: sk-0123456789abcdef\n    models: [a]\n")
    keys.chmod(0o600)
    engines = [await fleet.engine(models=[{"id": "a"}]), await fleet.engine(models=[{"id": "b"}])]
    proxy = await fleet.proxy(*engines, api_keys_file=str(keys))
    for headers in ({}, {"Authorization": "Bearer sk-0123456789abcdef"}):
        reply = await proxy.http.get("/index.html", headers=headers)
        assert (reply.status_code, reply.json()["engine"]) == (200, engines[0].url)
    assert (await proxy.http.get("/props")).status_code == 401
    assert (await proxy.http.post("/v1/chat/completions", json={})).status_code == 401
