"""Decisions are explained in reply headers where allowed, and listed for operators over all workers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from end_to_end.conftest import StartProxy, StartServers
from support.engine import Engine, answers_with
from support.fakes.engine import http_reply
from support.http_client import Reply, send
from support.llama_server import LlamaServer
from support.program import Proxy, program

PATH = "/v1/chat/completions"
KEY = "key-of-the-operators"
BEARER = {"Authorization": f"Bearer {KEY}"}
EXPLAIN = {"x-proxy-explain": "1"}
TERMS = {
    "least_requests": {"load", "cost", "rank"},
    "expected_time": {"held_tokens", "place", "before", "own", "crowd", "memory", "home", "tier", "cost"},
    "power_of_two": {"load"},
    "round_robin": {"idle_seconds"},
    "rendezvous": {"weight"},
}
LONG = " ".join(f"word {number}" for number in range(160))


@pytest.fixture
def servers(start_servers: StartServers, tiny_model: Path) -> list[LlamaServer]:
    return start_servers(2, tiny_model, "--slots", "2", "--context", "8192", "--http-threads", "32")


async def ask(proxy: Proxy, *contents: str, headers: dict[str, str] | None = None, model: str = "any") -> Reply:
    roles = ("system", *("user", "assistant") * len(contents))
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    body = {"model": model, "messages": messages, "max_tokens": 4, "temperature": 0}
    reply = await send(proxy.url, PATH, body, headers=headers)
    assert reply.status == 200
    return reply


async def decisions(proxy: Proxy, query: str = "") -> list[dict[str, Any]]:
    reply = await send(proxy.url, f"/admin/decisions{query}", headers=BEARER)
    assert reply.status == 200
    listed: list[dict[str, Any]] = reply.json["decisions"]
    return listed


@pytest.mark.parametrize("policy", TERMS)
async def test_every_policy_explains_its_decision(
    start_proxy: StartProxy, servers: list[LlamaServer], policy: str
) -> None:
    proxy = start_proxy(*servers, BALANCING_POLICY=policy, EXPLAIN_HEADER="true", ADMIN_KEY=KEY)
    replies = [await ask(proxy, LONG, f"Question {number}.", headers=EXPLAIN) for number in range(3)]
    listed = await decisions(proxy)
    assert [one["request_id"] for one in listed] == [reply.headers["x-request-id"] for reply in reversed(replies)]
    for one, reply in zip(listed, reversed(replies), strict=True):
        assert json.loads(reply.headers["x-proxy-decision"]) == one
        assert one["policy"] == policy
        assert reply.headers["x-backend"] == f"http://{one['chosen']}"
        assert one["candidates"][0]["name"] == one["chosen"]
        assert {f"http://{candidate['name']}" for candidate in one["candidates"]} == {server.url for server in servers}
        assert all(candidate.keys() - {"name"} == TERMS[policy] for candidate in one["candidates"])


async def test_explained_seconds_are_plausible(start_proxy: StartProxy, servers: list[LlamaServer]) -> None:
    proxy = start_proxy(*servers, BALANCING_POLICY="expected_time", ADMIN_KEY=KEY)
    first = await ask(proxy, LONG, "Begin.")
    again = await ask(proxy, LONG, "Begin.", "Well.", "Go on.")
    [one] = await decisions(proxy, "?limit=1")
    here, elsewhere = one["candidates"]
    assert again.headers["x-backend"] == first.headers["x-backend"] == f"http://{here['name']}"
    assert one["prompt_tokens"] == pytest.approx(
        again.json["usage"]["prompt_tokens"], rel=0.7
    )  # the bytes per token are not known yet
    assert here["held_tokens"] > 0.5 * one["prompt_tokens"]
    assert elsewhere["held_tokens"] == 0
    assert here["own"] < elsewhere["own"] < 60
    assert here["cost"] < elsewhere["cost"]


async def test_decisions_are_hidden_where_they_are_not_allowed(
    start_proxy: StartProxy, servers: list[LlamaServer]
) -> None:
    proxy = start_proxy(*servers, ADMIN_KEY=KEY)
    assert "x-proxy-decision" not in (await ask(proxy, "a", headers=EXPLAIN)).headers  # EXPLAIN_HEADER
    proxy = start_proxy(*servers)
    assert "x-proxy-decision" not in (await ask(proxy, "a", headers=EXPLAIN)).headers
    assert (await send(proxy.url, "/admin/decisions", headers=BEARER)).status == 404  # ADMIN_KEY


async def test_decision_is_sent_only_on_request(start_proxy: StartProxy, servers: list[LlamaServer]) -> None:
    proxy = start_proxy(*servers, EXPLAIN_HEADER="true", BACKEND_HEADER="false")
    assert "x-proxy-decision" not in (await ask(proxy, "a")).headers
    assert "x-proxy-decision" not in (await ask(proxy, "a", headers={"x-proxy-explain": "0"})).headers
    assert "x-proxy-decision" in (await ask(proxy, "a", headers=EXPLAIN)).headers


async def test_model_name_cannot_end_the_header(start_proxy: StartProxy, servers: list[LlamaServer]) -> None:
    proxy = start_proxy(*servers, EXPLAIN_HEADER="true")
    name = "\u6a21\r\nx-evil: 1\r\n\r\n\x7f"
    reply = await ask(proxy, "a", headers=EXPLAIN, model=name)
    assert "x-evil" not in reply.headers
    assert reply.headers["x-proxy-decision"].isascii()
    assert json.loads(reply.headers["x-proxy-decision"])["model"] == name


async def test_decision_header_names_the_backend_that_answered(tmp_path: Path) -> None:
    async with Engine(answers_with(http_reply(status=503))) as busy, Engine(answers_with(http_reply())) as well:
        settings = {"EXPLAIN_HEADER": "true", "ADMIN_KEY": KEY}
        async with program(tmp_path, busy, well, **settings) as proxy:
            replies = [await send(proxy.url, PATH, {"model": "m"}, headers=EXPLAIN) for _ in range(12)]
            listed = (await send(proxy.url, "/admin/decisions", headers=BEARER)).json["decisions"]
    for reply in replies:
        shown = json.loads(reply.headers["x-proxy-decision"])
        assert shown["request_id"] == reply.headers["x-request-id"]
        assert f"http://{shown['chosen']}" == reply.headers["x-backend"]
    assert {f"http://{one['chosen']}" for one in listed} == {busy.url, well.url}
    assert len({one["request_id"] for one in listed}) < len(listed)  # some requests were sent twice
    name = busy.url.removeprefix("http://")
    failures = {one["chosen"] + str(one["failures"]) for one in listed if one["failures"]}
    assert failures == {f"{well.url.removeprefix('http://')}{{'{name}': 'backend_declined'}}"}


async def test_any_worker_lists_the_decisions_of_all_workers(tmp_path: Path) -> None:
    async with (
        Engine(answers_with(http_reply())) as engine,
        program(tmp_path, engine, WORKERS="2", ADMIN_KEY=KEY) as proxy,
    ):
        replies = [await proxy.post() for _ in range(30)]
        answers = [await send(proxy.url, "/admin/decisions?limit=100", headers=BEARER) for _ in range(6)]
    sent = {reply.headers["x-request-id"] for reply in replies}
    assert len({name.partition("-")[0] for name in sent}) == 2
    for answer in answers:
        times = [one["at"] for one in answer.json["decisions"]]
        assert {one["request_id"] for one in answer.json["decisions"]} == sent
        assert times == sorted(times, reverse=True)
        assert answer.json["silent_workers"] == []
