from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from inference_engine_proxy_server.tasks.deadlines import NEVER, Deadlines
from support.fakes.front import until


class Clock:
    """A clock that advances only when a test sets it, and counts how often it is read."""

    def __init__(self) -> None:
        self.now = 100.0
        self.reads = 0

    def __call__(self) -> float:
        self.reads += 1
        return self.now

    async def ticks(self) -> None:
        """Wait until all deadlines have been checked at least once."""
        reads = self.reads
        await until(lambda: self.reads > reads + 1)


class Watched:
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
    assert task.cancelled(), "the task ended by itself"


async def test_a_deadline_fires_once_and_not_early(clock: Clock, deadlines: Deadlines) -> None:
    watched, other = Watched(105), Watched(NEVER)
    deadlines.watch(watched)
    deadlines.watch(other)
    await clock.ticks()
    assert not watched.calls
    clock.now = 105
    await clock.ticks()
    assert (watched.calls, other.calls) == ([105], [])


async def test_a_deadline_can_be_postponed(clock: Clock, deadlines: Deadlines) -> None:
    watched = Watched(105)
    deadlines.watch(watched)
    watched.deadline = 110
    clock.now = 107
    await clock.ticks()
    assert not watched.calls
    clock.now = 111
    await clock.ticks()
    assert watched.calls == [111]


async def test_a_forgotten_deadline_does_not_fire(clock: Clock, deadlines: Deadlines) -> None:
    watched = Watched(105)
    deadlines.watch(watched)
    deadlines.forget(watched)
    deadlines.forget(watched)
    clock.now = 106
    await clock.ticks()
    assert not watched.calls


async def test_a_handler_may_forget_other_deadlines(clock: Clock, deadlines: Deadlines) -> None:
    watched: list[Watched] = []

    def forget_all() -> None:
        for one in watched:
            deadlines.forget(one)

    watched += [Watched(105, forget_all) for _ in range(5)]
    for one in watched:
        deadlines.watch(one)
    clock.now = 106
    await clock.ticks()
    assert all(one.calls == [106] for one in watched)
    deadlines.watch(late := Watched(106))
    await clock.ticks()
    assert late.calls == [106]


async def test_a_failing_handler_does_not_stop_other_deadlines(caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> None:
        raise RuntimeError

    clock = Clock()
    deadlines = Deadlines(tick_seconds=0.001, clock=clock)
    failing, other = Watched(99.0, fails), Watched(99.0)
    deadlines.watch(failing)
    running = asyncio.get_running_loop().create_task(deadlines.run())
    await clock.ticks()
    deadlines.watch(other)
    await until(lambda: other.calls)
    assert len(failing.calls) == 1
    assert "a deadline handler failed" in caplog.text
    running.cancel()
