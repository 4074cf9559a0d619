"""By default, a conversation stays on the backend that has it in its cache, while that delays nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from end_to_end.conftest import StartProxy, StartServers
from support.http_client import Call, Reply, chat, send
from support.llama_server import LlamaServer
from support.program import Proxy
from support.waiting import eventually

ADMIN = {"Authorization": "Bearer admin-secret"}
KEPT = "turns_kept_warm_total"
ONCE = {"METRICS_CACHE_TTL_SECONDS": "60"}  # a poll that sees an ended request makes its backend look busier
ITEM = {  # an answer, as "Responses" repeats it
    "type": "message", "role": "assistant", "status": "completed", "id": "msg_1",
    "content": [{"type": "output_text", "text": "Well.", "annotations": []}],
}  # fmt: skip
OPTIONS = ("--slots", "4", "--context", "32768", "--http-threads", "32")


@pytest.fixture(scope="module")
def servers(tiny_model: Path) -> Iterator[list[LlamaServer]]:
    """Two servers with room for every conversation of these tests."""
    with ExitStack() as stack:
        yield [stack.enter_context(LlamaServer(tiny_model, *OPTIONS)) for _ in range(2)]


class Conversation:
    """A client that repeats the whole conversation with each question, as SDKs do."""

    def __init__(self, proxy: Proxy, name: str, path: str = "/v1/chat/completions") -> None:
        self.url, self.name, self.path = proxy.url, name, path
        self.messages: list[dict[str, Any]] = []
        self.homes: list[str] = []

    async def ask(self) -> Reply:
        self.messages.append({"role": "user", "content": f"{self.name} asks {len(self.homes)} " * 6})
        member = "input" if self.path.endswith("/responses") else "messages"
        limit = "max_output_tokens" if member == "input" else "max_tokens"
        reply = await send(self.url, self.path, {"model": "m", member: self.messages, limit: 4})
        assert reply.status == 200
        self.homes.append(reply.headers["x-backend"])
        self.messages.append(ITEM if member == "input" else {"role": "assistant", "content": "Well."})
        return reply


def cached_share(reply: Reply) -> float:
    """The share of the prompt that the engine had in its cache."""
    usage = reply.json["usage"]
    return float(usage["prompt_tokens_details"]["cached_tokens"] / usage["prompt_tokens"])


async def test_every_turn_after_the_first_is_warm(start_proxy: StartProxy, servers: list[LlamaServer]) -> None:
    proxy = start_proxy(*servers, **ONCE, ADMIN_KEY="admin-secret")
    one = Conversation(proxy, "alone")
    shares = [cached_share(await one.ask()) for _ in range(10)]
    assert len(set(one.homes)) == 1
    assert min(shares[1:]) > 0.4
    assert shares[1:] == sorted(shares[1:])  # each turn adds less to what is cached
    assert await proxy.metric(KEPT) == 9
    [latest] = (await send(proxy.url, "/admin/decisions?limit=1", headers=ADMIN)).json["decisions"]
    assert (latest["policy"], f"http://{latest['chosen']}") == ("kept_warm", one.homes[0])
    assert [candidate.keys() for candidate in latest["candidates"]] == [{"name", "load", "cost", "rank"}] * 2
    assert len({candidate["rank"] for candidate in latest["candidates"]}) == 1


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
async def test_conversations_of_every_api_stay(start_proxy: StartProxy, servers: list[LlamaServer], path: str) -> None:
    proxy = start_proxy(*servers, **ONCE)
    for number in range(3):
        one = Conversation(proxy, f"{path} {number}", path)
        for _ in range(4):
            await one.ask()
        assert len(set(one.homes)) == 1
    assert await proxy.metric(KEPT) == 9


async def test_growing_prompts_of_completions_are_not_conversations(
    start_proxy: StartProxy, servers: list[LlamaServer]
) -> None:
    proxy = start_proxy(*servers, **ONCE)
    for turns in range(1, 5):
        await send(proxy.url, "/v1/completions", {"model": "m", "prompt": "{} {} {} " * turns, "max_tokens": 2})
    assert await proxy.metric(KEPT) == 0


async def test_concurrent_conversations_share_the_backends_and_are_mostly_warm(
    start_proxy: StartProxy, servers: list[LlamaServer]
) -> None:
    proxy = start_proxy(*servers, **ONCE)
    some = [Conversation(proxy, f"concurrent {number}") for number in range(4)]

    async def hold(one: Conversation) -> list[float]:
        return [cached_share(await one.ask()) for _ in range(10)]

    shares = await asyncio.gather(*map(hold, some))

    assert len({home for one in some for home in one.homes}) == 2
    stays = sum(now == before for one in some for before, now in zip(one.homes, one.homes[1:], strict=False))
    # Load goes first: at random, a turn would stay with a probability of one half, 18 of 36 turns.
    assert stays >= 18
    assert sum(share > 0.4 for one in shares for share in one[1:]) >= 18


async def test_first_questions_use_both_backends(start_proxy: StartProxy, servers: list[LlamaServer]) -> None:
    proxy = start_proxy(*servers, **ONCE)
    homes = [(await Conversation(proxy, "same").ask()).headers["x-backend"] for _ in range(40)]
    assert set(homes) == {server.url for server in servers}


async def test_drained_backend_loses_its_conversations_and_a_returning_one_gets_new_turns(
    start_proxy: StartProxy, servers: list[LlamaServer]
) -> None:
    proxy = start_proxy(*servers, **ONCE, ADMIN_KEY="admin-secret")
    one = Conversation(proxy, "drained")
    await one.ask()
    path = f"/admin/backends/{one.homes[0].removeprefix('http://')}"
    assert (await send(proxy.url, f"{path}/drain", method="POST", headers=ADMIN)).status == 200
    await one.ask()
    assert (await send(proxy.url, f"{path}/undrain", method="POST", headers=ADMIN)).status == 200
    await one.ask()
    home, *others = one.homes
    assert home not in others
    assert len(set(others)) == 1


async def test_conversation_of_a_dead_backend_goes_on_elsewhere(
    start_proxy: StartProxy, start_servers: StartServers, tiny_model: Path
) -> None:
    servers = start_servers(2, tiny_model, *OPTIONS)
    proxy = start_proxy(*servers, **ONCE)
    one = Conversation(proxy, "dead")
    await one.ask()
    next(server for server in servers if server.url == one.homes[0]).kill()
    for _ in range(3):
        await one.ask()
    home, *others = one.homes
    assert home not in others
    assert len(set(others)) == 1


def fleet_of(servers: Sequence[LlamaServer]) -> str:
    return "backends:\n" + "".join(f"  - {{url: '{server.url}'}}\n" for server in servers)


async def test_conversation_stays_when_a_backend_joins(
    start_proxy: StartProxy, servers: list[LlamaServer], shared_server: LlamaServer, tmp_path: Path
) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(fleet_of(servers))
    proxy = start_proxy(BACKENDS="", CONFIG_FILE=str(file), **ONCE)
    one = Conversation(proxy, "reloaded")
    await one.ask()
    file.write_text(fleet_of([*servers, shared_server]))

    async def has_joined() -> bool:
        return shared_server.url in await proxy.available()

    await eventually(has_joined)
    for _ in range(3):
        await one.ask()
    assert len(set(one.homes)) == 1


async def is_idle(proxy: Proxy) -> bool:
    return await proxy.in_flight() == 0


async def test_all_workers_know_a_conversation(start_proxy: StartProxy, servers: list[LlamaServer]) -> None:
    proxy = start_proxy(*servers, **ONCE, WORKERS="2")
    one = Conversation(proxy, "workers")
    workers = set()
    for _ in range(12):  # each on its own connection
        workers.add((await one.ask()).headers["x-request-id"].partition("-")[0])
        await eventually(lambda: is_idle(proxy))  # the next worker may be faster than the lease of this one ends
    assert len(workers) == 2
    assert len(set(one.homes)) == 1
    assert await proxy.metric(KEPT) == 11


async def test_busy_home_is_left(start_proxy: StartProxy, servers: list[LlamaServer]) -> None:
    proxy = start_proxy(*servers, **ONCE)
    one = Conversation(proxy, "left")
    async with Call(proxy.url, "/v1/chat/completions", chat(3000, stream=True, ignore_eos=True)) as stream:
        stream.send()
        assert await stream.head() == 200
        await one.ask()
        await one.ask()
        assert stream.headers["x-backend"] not in one.homes
        one.homes.append(stream.headers["x-backend"])


async def test_conversation_stays_where_other_models_have_another_policy(
    start_proxy: StartProxy, servers: list[LlamaServer], tmp_path: Path
) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(fleet_of(servers) + "models: {other: {balancing_policy: expected_time}}\n")
    proxy = start_proxy(BACKENDS="", CONFIG_FILE=str(file), **ONCE)
    one = Conversation(proxy, "mixed")
    for _ in range(5):
        await one.ask()
    assert await proxy.metric(KEPT) == 4
