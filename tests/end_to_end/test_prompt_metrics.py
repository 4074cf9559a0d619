"""The estimated cached tokens match those that engines report."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from end_to_end.conftest import StartProxy, StartServers
from support.http_client import send
from support.llama_server import LlamaServer
from support.program import Proxy

PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
_, _, SECTION = PAGE.partition("## Prompts\n")
DOCUMENTED = {
    name: (kind, frozenset(re.findall(r"`(\w+)`", labels)))
    for name, kind, labels in re.findall(
        r"^\| `(\w+)` \| (\w+) \| ([^|]*)\| [^|]+ \|$", SECTION.partition("\n## ")[0], re.MULTILINE
    )
}
SENT, PREDICTED, CACHED = (
    f"inference_proxy_backend_prompt_tokens{part}_total" for part in ("", "_predicted", "_cached")
)
Message = dict[str, str]


@pytest.fixture
def servers(start_servers: StartServers, tiny_model: Path) -> list[LlamaServer]:
    return start_servers(2, tiny_model, "--slots", "4", "--context", "32768", "--http-threads", "32")


async def ask(proxy: Proxy, messages: list[Message]) -> tuple[int, int]:
    """Prompt tokens and cached prompt tokens, from the usage in a reply."""
    body = {"messages": messages, "max_tokens": 4, "temperature": 0, "ignore_eos": True}
    reply = await send(proxy.url, "/v1/chat/completions", body)
    assert reply.status == 200
    usage = reply.json["usage"]
    return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


async def families(proxy: Proxy) -> list[Metric]:
    """The metrics that exist only while a policy learns."""
    page = (await send(proxy.url, "/metrics")).body.decode()
    found = list(text_string_to_metric_families(page))
    return [one for one in found if one.name + "_total" * (one.type == "counter") in DOCUMENTED]


async def total(proxy: Proxy, name: str) -> float:
    samples = [sample for family in await families(proxy) for sample in family.samples]
    return sum(sample.value for sample in samples if sample.name == name)


def beginnings(count: int) -> list[list[Message]]:
    texts = (" ".join(f"{name} {number}" for number in range(600)) for name in "abcdefgh"[:count])
    return [[{"role": "system", "content": text}, {"role": "user", "content": "Begin."}] for text in texts]


NEXT_TURN = [{"role": "assistant", "content": "Well."}, {"role": "user", "content": "Go on."}]


async def test_estimated_cached_tokens_are_cached(start_proxy: StartProxy, servers: list[LlamaServer]) -> None:
    proxy = start_proxy(*servers, BALANCING_POLICY="expected_time")
    first = [await ask(proxy, messages) for messages in beginnings(4)]
    assert await total(proxy, PREDICTED) == 0
    assert await total(proxy, SENT) == sum(prompt for prompt, _ in first)
    cached_at_first = await total(proxy, CACHED)

    again = [await ask(proxy, messages + NEXT_TURN) for messages in beginnings(4)]

    held = await total(proxy, CACHED) - cached_at_first
    assert await total(proxy, SENT) == sum(prompt for prompt, _ in first + again)
    assert held == sum(cached for _, cached in again) > 0.5 * sum(prompt for prompt, _ in again)
    assert await total(proxy, PREDICTED) == pytest.approx(
        held, rel=0.2
    )  # the estimate counts whole blocks of 512 bytes


async def test_every_metric_of_learned_state_is_documented(start_proxy: StartProxy, servers: list[LlamaServer]) -> None:
    proxy = start_proxy(*servers, BALANCING_POLICY="expected_time")
    for messages in beginnings(8):
        await ask(proxy, messages)
    shown = {
        family.name + "_total" * (family.type == "counter"): (
            family.type, frozenset(label for sample in family.samples for label in sample.labels)
        )
        for family in await families(proxy)
    }  # fmt: skip
    assert shown == DOCUMENTED
    assert await total(proxy, "inference_proxy_backend_prompts_reading") == 0
    assert 100 < await total(proxy, "inference_proxy_backend_read_tokens_per_second") < 1_000_000
    assert 0 < await total(proxy, "inference_proxy_backend_seconds_per_token") < 1
    assert 2**16 < await total(proxy, "inference_proxy_backend_kept_prompt_bytes") < 2**30
    assert 0 < await total(proxy, "inference_proxy_prefix_index_bytes") < 2**26
    assert await total(proxy, "inference_proxy_prefix_index_runs") >= 8


@pytest.mark.parametrize("policy", ["least_requests", "rendezvous"])
async def test_learned_metrics_are_absent_while_no_policy_learns(
    start_proxy: StartProxy, servers: list[LlamaServer], policy: str
) -> None:
    proxy = start_proxy(*servers, BALANCING_POLICY=policy)
    await ask(proxy, beginnings(1)[0])
    assert await families(proxy) == []


async def test_learned_metrics_are_summed_over_workers(start_proxy: StartProxy, servers: list[LlamaServer]) -> None:
    proxy = start_proxy(*servers, BALANCING_POLICY="expected_time", WORKERS="2")
    usages = [await ask(proxy, messages) for messages in beginnings(8)]
    assert await total(proxy, SENT) == sum(prompt for prompt, _ in usages)
    assert await total(proxy, CACHED) == sum(cached for _, cached in usages)
