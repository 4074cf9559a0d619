"""A proxy whose server of shared state cannot be reached does all that a proxy without one does, and says so."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest

from end_to_end.stateful_engine import StatefulEngine
from end_to_end.test_joining import ADMIN, ANNOUNCE, add, announce, ask, remove, sources
from end_to_end.test_ownership import KEYS, RESPONSES, Proxied
from support.engine import Engine, answers_with
from support.fakes.engine import http_reply
from support.http_client import send
from support.live_proxy import live_proxy
from support.ports import free_port
from support.running_proxy import RunningProxy


class Fleet(NamedTuple):
    proxy: RunningProxy
    engines: list[StatefulEngine]


@pytest.fixture
def nowhere() -> str:
    return f"redis://127.0.0.1:{free_port()}"


@pytest.fixture
async def fleet(nowhere: str) -> AsyncIterator[Fleet]:
    async with StatefulEngine("a") as one, StatefulEngine("b") as other:
        settings = {"admin_key": ADMIN, "announce_key": ANNOUNCE, "state_url": nowhere}
        async with live_proxy(one.url, other.url, refresh_seconds=0.5, **settings) as proxy:
            yield Fleet(proxy, [one, other])


async def test_responses_are_found_by_asking_the_backends(fleet: Fleet) -> None:
    ids = []
    while len(fleet.engines[0].stored) < 2:  # chance decides which of two idle backends gets a request
        ids.append((await fleet.proxy.post(RESPONSES, {"model": "m"})).json["id"])
    unknown = fleet.engines[0].stored[0] = "resp_of_another_proxy"
    for response in (ids[-1], unknown):
        after = {"model": "m", "previous_response_id": response}
        assert (await fleet.proxy.post(RESPONSES, after)).status == 200
        assert (await send(fleet.proxy.url, f"{RESPONSES}/{response}")).status == 200
    health = await fleet.proxy.health()
    assert (health["status"], health["shared_state"]["available"]) == ("ok", False)


async def test_commands_apply_here_and_nothing_is_called_safe_to_stop(fleet: Fleet) -> None:
    drained = (await ask(fleet.proxy, f"/backends/{fleet.engines[0].url}/drain", b"")).json
    assert (drained["draining"], drained["safe_to_stop"], drained["replicas"]) == (True, False, [])
    assert drained["silent_replicas"] == ["unknown: the shared state is not available"]
    assert {(await fleet.proxy.post()).headers["x-backend"] for _ in range(4)} == {fleet.engines[1].url}
    undrained = (await ask(fleet.proxy, f"/backends/{fleet.engines[0].url}/undrain", b"")).json
    assert undrained["draining"] is False


async def test_backends_join_and_leave_here(fleet: Fleet) -> None:
    async with Engine(answers_with(http_reply())) as engine, Engine(answers_with(http_reply())) as other:
        assert (await add(fleet.proxy, url=engine.url)).status == 201
        assert (await announce(fleet.proxy, url=other.url)).status == 200
        assert {engine.url, other.url} <= (await sources(fleet.proxy)).keys()
        assert (await remove(fleet.proxy, engine.url)).json["in_fleet"] is False


async def test_resources_belong_to_the_keys_that_created_them(
    tmp_path_factory: pytest.TempPathFactory, nowhere: str
) -> None:
    (keys := tmp_path_factory.mktemp("keys") / "keys.yaml").write_text(KEYS)
    async with StatefulEngine("a") as engine:
        async with live_proxy(engine.url, api_keys_file=str(keys), state_url=nowhere) as proxy:
            asked = Proxied(proxy.url)
            created = await asked.create("alice")
            assert (await asked.ask("bob", "GET", f"{RESPONSES}/{created}")).status == 404
            assert (await asked.ask("alice", "GET", f"{RESPONSES}/{created}")).status == 200
