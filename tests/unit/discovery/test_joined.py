"""Backends of the roster as sources."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from inference_engine_proxy_server.config.added_backends import DescriptionError, config_of
from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.discovery.joined import AddedBackends, AnnouncedBackends
from inference_engine_proxy_server.discovery.source import SourceReport
from inference_engine_proxy_server.processes.roster import Entry, Roster
from support.waiting import eventually

A, B = "http://a:1", "http://b:1"


class Reports:
    """What a source reports."""

    def __init__(self) -> None:
        self.urls: list[list[str]] = []

    def found(self, backends: Sequence[BackendConfig]) -> None:
        self.urls.append([backend.url for backend in backends])

    def failed(self, problem: str, *, backends_leave: bool = False) -> None:
        raise AssertionError(problem)


class Runs(Protocol):
    async def run(self, report: SourceReport) -> None: ...


@asynccontextmanager
async def running(source: Runs) -> AsyncIterator[Reports]:
    reports = Reports()
    task = asyncio.get_running_loop().create_task(source.run(reports))
    try:
        await eventually(lambda: reports.urls)
        yield reports
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def configured(entry: Entry) -> BackendConfig:
    return config_of(entry, {}, None)


async def test_added_backends_are_reported_at_the_start_and_after_each_command() -> None:
    roster = Roster([{"url": A}])
    async with running(AddedBackends(roster, configured)) as reports:
        roster.carry_out(Roster.adding({"url": B}))
        await eventually(lambda: reports.urls[-1] == [A, B])
        roster.carry_out(Roster.removing(A))
        await eventually(lambda: reports.urls[-1] == [B])
        assert reports.urls[0] == [A]


async def test_a_backend_whose_key_is_gone_is_left_out() -> None:
    def of(entry: Entry) -> BackendConfig:
        if entry["url"] == A:
            raise DescriptionError("api_key_env: the environment variable that it names is not set")
        return configured(entry)

    async with running(AddedBackends(Roster([{"url": A}, {"url": B}]), of)) as reports:
        assert reports.urls == [[B]]


async def test_an_entry_is_configured_again_only_when_it_has_changed() -> None:
    asked: list[Entry] = []

    def of(entry: Entry) -> BackendConfig:
        asked.append(entry)
        return configured(entry)

    roster = Roster()
    async with running(AnnouncedBackends(roster, of, lambda: 0.0)) as reports:
        for ends_at in (5.0, 6.0):
            roster.carry_out(Roster.announcing({"url": A}, "", ends_at))
            await eventually(lambda: reports.urls[-1] == [A])
        roster.carry_out(Roster.announcing({"url": A, "weight": 2}, "", 7.0))
        await eventually(lambda: len(asked) == 2)
    assert asked == [{"url": A}, {"url": A, "weight": 2}]


async def test_a_backend_leaves_when_its_lease_ends() -> None:
    now = [0.0]
    roster = Roster()
    async with running(AnnouncedBackends(roster, configured, lambda: now[0])) as reports:
        roster.carry_out(Roster.announcing({"url": A}, "", 0.05))
        await eventually(lambda: reports.urls[-1] == [A])
        now[0] = 0.06
        await eventually(lambda: reports.urls[-1] == [])


def test_a_process_that_stood_still_gives_all_leases_that_time() -> None:
    now = [0.0]
    roster = Roster()
    source = AnnouncedBackends(roster, configured, lambda: now[0])
    for url, ends_at in ((A, 5.0), (B, 6.0)):
        roster.carry_out(Roster.announcing({"url": url}, "", ends_at))
    now[0] = 20.0
    source.end_leases()
    assert len(roster.announced) == 2
    assert roster.next_end() == 21.0
    now[0] = 21.5
    source.end_leases()
    assert [one.entry["url"] for one in roster.announced.values()] == [B]
