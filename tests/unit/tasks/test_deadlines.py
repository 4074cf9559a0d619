from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from inference_engine_proxy_server.tasks.deadlines import NEVER, Deadlines
from support.fakes.front import until


class Clock:
    """Stands still until it is set; counts how often it is read."""

    def __init__(self) -> None:
        self.now = 100.0
        self.reads = 0

    def __call__(self) -> float:
        self.reads += 1
        return self.now

    async def ticks(self) -> None:
        """Wait until the deadlines have been looked at, in full, at least once."""
        reads = self.reads
        await until(lambda: self.reads > reads + 1)


class RunningProxy:
    def __init__(self, deadline: float, on_due: Callable[[], None] = lambda: None) -> None:
        self.deadline = deadline
        self.calls: list[float] = []
        self._on_due = on_due

    def on_deadline(self, now: float) -> None:
        self.calls.append(now)
        self.deadline = NEVER
        self._on_due()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def deadlines(clock: Clock) -> AsyncIterator[Deadlines]:
    deadlines = Deadlines(tick_seconds=0.001, clock=clock)
    task = asyncio.get_running_loop().create_task(deadlines.run())
    yield deadlines
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled(), "it ended by itself"


async def test_a_deadline_is_met_once_when_it_is_reached_and_not_before(clock: Clock, deadlines: Deadlines) -> None:
    watched, other = RunningProxy(105), RunningProxy(NEVER)
    deadlines.watch(watched)
    deadlines.watch(other)
    await clock.ticks()
    assert not watched.calls
    clock.now = 105
    await clock.ticks()
    assert (watched.calls, other.calls) == ([105], [])


async def test_a_deadline_may_be_moved(clock: Clock, deadlines: Deadlines) -> None:
    watched = RunningProxy(105)
    deadlines.watch(watched)
    watched.deadline = 110
    clock.now = 107
    await clock.ticks()
    assert not watched.calls
    clock.now = 111
    await clock.ticks()
    assert watched.calls == [111]


async def test_what_is_forgotten_is_not_called(clock: Clock, deadlines: Deadlines) -> None:
    watched = RunningProxy(105)
    deadlines.watch(watched)
    deadlines.forget(watched)
    deadlines.forget(watched)
    clock.now = 106
    await clock.ticks()
    assert not watched.calls


async def test_a_deadline_met_may_end_the_watch_of_others(clock: Clock, deadlines: Deadlines) -> None:
    watched: list[RunningProxy] = []

    def forget_all() -> None:
        for one in watched:
            deadlines.forget(one)

    watched += [RunningProxy(105, forget_all) for _ in range(5)]
    for one in watched:
        deadlines.watch(one)
    clock.now = 106
    await clock.ticks()
    assert all(one.calls == [106] for one in watched)
    deadlines.watch(late := RunningProxy(106))
    await clock.ticks()
    assert late.calls == [106]


async def test_one_that_fails_does_not_end_the_others(caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> None:
        raise RuntimeError

    clock = Clock()
    deadlines = Deadlines(tick_seconds=0.001, clock=clock)
    failing, other = RunningProxy(99.0, fails), RunningProxy(99.0)
    deadlines.watch(failing)
    running = asyncio.get_running_loop().create_task(deadlines.run())
    await clock.ticks()
    deadlines.watch(other)
    await until(lambda: other.calls)
    assert len(failing.calls) == 1
    assert "a deadline could not be kept" in caplog.text
    running.cancel()
