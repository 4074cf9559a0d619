"""How evenly four replicas load the engines, and how often these find a conversation in their cache."""

from __future__ import annotations

from collections import Counter

from nginx.server import Nginx
from replicas.conftest import ENGINES, Report, Site
from replicas.load import Kind, Load, load

CONVERSATION = (Kind("/v1/chat/completions", streams=True, talks=True),)
ANSWERS = 160
ROUNDING = 0.5
"""A share of requests that a busy machine may move from one engine to another."""


async def played(nginx: Nginx, topic: str) -> Load:
    async with load(nginx.url, CONVERSATION, clients=12, topic=topic) as running:
        await running.goes_on(ANSWERS)
    assert running.failed == []
    return running


def hit_rate(running: Load) -> float:
    """The share of prompt tokens that the engines had in their caches."""
    return sum(one.cached_tokens for one in running.succeeded) / sum(one.prompt_tokens for one in running.succeeded)


def line(replicas: int, running: Load, shares: Counter[str]) -> str:
    counts = ", ".join(str(count) for count in sorted(shares.values()))
    return (
        f"conversations through {replicas} replicas: hit rate {hit_rate(running):.0%}, requests on the engines {counts}"
    )


async def test_four_replicas_balance_conversations_over_all_engines(site: Site, report: Report) -> None:
    folder = site.folder / "nginx-of-one"
    folder.mkdir()
    with Nginx(folder, next(iter(site.replicas.values())).url) as nginx_of_one:
        by_one = await played(nginx_of_one, "kin")
    by_four = await played(site.nginx, "mer")
    for replicas, running in ((1, by_one), (4, by_four)):
        shares = Counter(one.backend for one in running.succeeded)
        report(line(replicas, running, shares))
        assert len(shares) == ENGINES
        assert min(shares.values()) > len(running.succeeded) / ENGINES * ROUNDING
    assert hit_rate(by_four) > 0
