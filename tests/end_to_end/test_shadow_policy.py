"""A shadow policy reports what it would have saved, on real engines, and changes nothing."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from end_to_end.conftest import StartProxy
from support.http_client import Call, Reply, chat, send
from support.llama_server import LlamaServer
from support.program import Proxy, run_command

METRICS_PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
SECTION = METRICS_PAGE.partition("\n## Shadow policy\n")[2].partition("\n## ")[0]
PATH = "/v1/chat/completions"
KEY = {"Authorization": "Bearer admin-secret"}
WATCHED = {"SHADOW_POLICY": "expected_time", "ADMIN_KEY": "admin-secret", "EXPLAIN_HEADER": "true"}


@pytest.fixture(scope="module")
def servers(tiny_model: Path) -> Iterator[list[LlamaServer]]:
    with ExitStack() as stack:
        options = ("--slots", "4", "--context", "32768", "--http-threads", "32")
        yield [stack.enter_context(LlamaServer(tiny_model, *options)) for _ in range(2)]


async def ask(proxy: Proxy, *contents: str, stream: bool = False) -> Reply:
    roles = ("user", "assistant") * len(contents)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    body = {"model": "m", "messages": messages, "max_tokens": 4, "temperature": 0, "stream": stream}
    reply = await send(proxy.url, PATH, body, headers={"x-proxy-explain": "1"})
    assert reply.status == 200
    return reply


def words(name: str) -> str:
    return " ".join(f"{name} {number}" for number in range(250))


async def expected(proxy: Proxy, what: str) -> tuple[float, float]:
    """What was expected of the backends of the active and of the shadow policy."""
    name = f"shadow_{what}_total"
    return await proxy.metric(name, policy="active"), await proxy.metric(name, policy="shadow")


async def test_shadow_finds_the_backend_with_the_prompt_while_the_active_policy_sees_load(
    start_proxy: StartProxy, servers: list[LlamaServer]
) -> None:
    proxy = start_proxy(*servers, **WATCHED)
    first = await ask(proxy, words("a"))
    warm = first.headers["x-backend"]
    read_before = await expected(proxy, "read_tokens")
    assert read_before[0] == read_before[1] > 0
    async with Call(proxy.url, PATH, chat(3000, stream=True, ignore_eos=True)) as stream:
        stream.send()  # it goes to one of the two
        assert await stream.head() == 200
        busy = stream.headers["x-backend"]
        again = await ask(proxy, words("a"), "Well.", "Go on.")

    assert again.headers["x-backend"] != busy  # least_requests, as without a shadow
    [latest] = (await send(proxy.url, "/admin/decisions?limit=1", headers=KEY)).json["decisions"]
    shadow = latest["shadow"]
    assert latest["policy"] in ("least_requests", "kept_warm")
    assert (shadow["policy"], f"http://{shadow['chosen']}") == ("expected_time", warm)
    held = {f"http://{one['name']}": one["held_tokens"] for one in shadow["candidates"]}
    assert held[warm] > 100
    assert json.loads(again.headers["x-proxy-decision"])["shadow"]["chosen"] == shadow["chosen"]
    is_same = warm != busy
    assert await proxy.metric("shadow_decisions_total", choice="same" if is_same else "different") >= 1
    read = await expected(proxy, "read_tokens")
    assert (read[0] - read[1] > 100) is not is_same
    assert (await expected(proxy, "first_token_seconds"))[0] >= (await expected(proxy, "first_token_seconds"))[1] > 0


async def test_shadow_learns_from_real_replies(start_proxy: StartProxy, servers: list[LlamaServer]) -> None:
    proxy = start_proxy(*servers, **WATCHED)
    usages: list[dict[str, Any]] = []
    for name in "bcdefg":
        usages.append((await ask(proxy, words(name))).json["usage"])
        usages.append((await ask(proxy, words(name), "Well.", "Go on.")).json["usage"])
    sent = sum(usage["prompt_tokens"] for usage in usages)
    cached = sum(usage["prompt_tokens_details"]["cached_tokens"] for usage in usages)
    assert await proxy.metric("backend_prompt_tokens_total") == sent
    assert await proxy.metric("backend_prompt_tokens_cached_total") == cached
    predicted = await proxy.metric("backend_prompt_tokens_predicted_total")
    assert 0.5 * cached < predicted <= 1.05 * cached  # the index counts whole blocks of 512 bytes
    assert await proxy.metric("backend_read_tokens_per_second") > 100
    # Nothing else was going on, so the default policy has kept each conversation where the shadow would have sent it.
    assert await proxy.metric("turns_kept_warm_total") == 6
    read = await expected(proxy, "read_tokens")
    assert read[1] <= read[0] < sent * 2


async def test_figures_of_all_workers_are_summed(start_proxy: StartProxy, servers: list[LlamaServer]) -> None:
    proxy = start_proxy(*servers, **WATCHED, WORKERS="2")
    replies = [await ask(proxy, words(str(number)), stream=number % 2 == 0) for number in range(8)]
    assert set(Counter(reply.headers["x-backend"] for reply in replies)) <= {server.url for server in servers}
    assert await proxy.metric("shadow_decisions_total") == 8


async def test_every_metric_of_the_shadow_is_documented(start_proxy: StartProxy, servers: list[LlamaServer]) -> None:
    page = (await send(start_proxy(*servers, **WATCHED).url, "/metrics")).body.decode()
    shown = {
        (f"{family.name}_total", frozenset(label for sample in family.samples for label in sample.labels))
        for family in text_string_to_metric_families(page)
        if "_shadow_" in family.name
    }
    rows = re.findall(r"^\| `(\w+)` \| counter \| ([^|]*)\|", SECTION, re.MULTILINE)
    assert shown == {(name, frozenset(re.findall(r"`(\w+)`", labels))) for name, labels in rows}
    assert len(shown) == 3


async def test_without_a_shadow_there_is_no_trace_of_one(start_proxy: StartProxy, servers: list[LlamaServer]) -> None:
    proxy = start_proxy(*servers, ADMIN_KEY="admin-secret")
    await ask(proxy, words("h"))
    assert b"inference_proxy_shadow" not in (await send(proxy.url, "/metrics")).body
    [latest] = (await send(proxy.url, "/admin/decisions", headers=KEY)).json["decisions"]
    assert "shadow" not in latest
    assert latest["prompt_tokens"] is None  # prompts are not read


def test_shadow_must_be_another_policy(tmp_path: Path) -> None:
    found = run_command(
        tmp_path, "settings", BACKENDS="http://192.0.2.1", SHADOW_POLICY="Round_Robin", BALANCING_POLICY="round_robin"
    )
    assert found.returncode == 2
    assert "SHADOW_POLICY and BALANCING_POLICY are both round_robin: choose another policy" in found.stderr
