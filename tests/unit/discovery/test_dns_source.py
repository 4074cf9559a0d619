"""When a DNS name is looked up again, and what its answers mean; time passes only as each test says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.config.lookups import Lookup
from inference_engine_proxy_server.discovery.dns_records import DnsAnswer, DnsFailure, DnsRecord, NothingFound
from inference_engine_proxy_server.discovery.dns_source import DnsSource

ENTRY = BackendConfig("dns+http://engines:8080", "engines:8080")
NOTHING = NothingFound("the name does not exist")
SILENCE = DnsFailure("the name server does not answer")


class Site:
    """A name server with a script, and the report of the source.

    Attributes:
        now: seconds.
        reports: the hosts that were found, or the problem, and whether backends leave then.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.reports: list[list[str] | tuple[str, bool]] = []
        self.source = DnsSource(ENTRY, self._ask, lambda: self.now)
        self._answer: DnsAnswer | Exception

    async def _ask(self, lookup: Lookup) -> DnsAnswer:
        assert lookup.name == "engines"
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    def found(self, backends: Sequence[BackendConfig]) -> None:
        self.reports.append([backend.url.removeprefix("http://10.0.0.") for backend in backends])

    def failed(self, problem: str, *, backends_leave: bool = False) -> None:
        self.reports.append((problem, backends_leave))

    async def ask(self, answer: DnsAnswer | Exception) -> float:
        """Look up once with this answer; returns the pause, which then passes."""
        self._answer = answer
        seconds = await self.source.refresh(self)
        self.now += seconds
        return seconds


def answer(*hosts: int, ttl: float = 5) -> DnsAnswer:
    return DnsAnswer(tuple(DnsRecord(f"10.0.0.{host}", None, "engines") for host in hosts), ttl)


@pytest.mark.parametrize(("ttl", "seconds"), [(0, 1), (0.5, 1), (5, 5), (30, 30), (31, 30), (86_400, 30)])
async def test_answer_lasts_for_its_ttl_within_bounds(ttl: float, seconds: float) -> None:
    assert await Site().ask(answer(1, ttl=ttl)) == seconds


async def test_each_answer_is_the_complete_set() -> None:
    site = Site()
    for hosts in ((1, 2), (2, 3), (3,)):
        await site.ask(answer(*hosts))
    assert site.reports == [["1:8080", "2:8080"], ["2:8080", "3:8080"], ["3:8080"]]


async def test_failures_are_retried_less_and_less_often_and_keep_the_set_for_ever() -> None:
    site = Site()
    await site.ask(answer(1))
    pauses = [await site.ask(SILENCE) for _ in range(1000)]
    assert pauses[:7] == [1, 2, 4, 8, 16, 30, 30]
    assert site.reports[1:] == [(str(SILENCE), False)] * 1000
    await site.ask(answer(1))
    assert await site.ask(SILENCE) == 1


async def test_answer_without_records_is_believed_after_a_minute() -> None:
    site = Site()
    await site.ask(answer(1))
    began = site.now
    while site.now - began < 60:
        await site.ask(NOTHING)
        assert site.reports[-1] == (str(NOTHING), False)
    await site.ask(NOTHING)
    assert site.reports[-1] == (str(NOTHING), True)
    assert site.now - began < 120


async def test_minute_without_records_begins_again_after_a_failure() -> None:
    site = Site()
    await site.ask(answer(1))
    for nothing in (NOTHING, SILENCE, NOTHING):
        site.now += 59
        await site.ask(nothing)
    assert [report[1] for report in site.reports[1:]] == [False, False, False]


async def test_changed_options_apply_to_what_was_found() -> None:
    class Weights(Site):
        def found(self, backends: Sequence[BackendConfig]) -> None:
            self.reports.append([f"{backend.weight:g}" for backend in backends])

    site = Weights()
    site.source.configure(replace(ENTRY, weight=2))  # before the first answer
    await site.ask(answer(1, 2))
    assert site.reports == [["2", "2"]]
    site.source.configure(replace(ENTRY, weight=3))
    site.source.configure(replace(ENTRY, weight=3))
    assert site.reports == [["2", "2"], ["3", "3"]]
