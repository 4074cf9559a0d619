"""Whose turn it is when requests must wait; with places of the test's own, and a clock that is moved by hand."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine_proxy_server.dispatch.request_queue import FIRST, QueuedRequest, QueueLimits, RequestQueue
from inference_engine_proxy_server.errors import CapacityError
from inference_engine_proxy_server.tasks.deadlines import NEVER, Deadlines
from support.fakes.memory import run, turns


class Desk:
    """Places at some lanes' desks, and the line before them.

    Attributes:
        free: places, by lane.
        given: who got one, in order.
        now: reading of the clock.
    """

    def __init__(self, *, requests: int = 100, seconds: float = 30, **free: int) -> None:
        self.now = 1000.0
        self.free = Counter(free)
        self.taken: list[Seat] = []
        self.given: list[str] = []
        self.deadlines = Deadlines(clock=lambda: self.now)
        self.line = RequestQueue[Seat](QueueLimits(requests, seconds), self.deadlines)
        self.tasks: list[asyncio.Task[Seat]] = []
        self.waiters: list[QueuedRequest[Seat]] = []

    async def join(
        self,
        name: str = "",
        lane: str = "m",
        *,
        sender: str | None = None,
        tokens: float = 1.0,
        priority: float = 0,
        takes_free: bool = False,
    ) -> asyncio.Task[Seat]:
        """Let a request wait; it is in line when this returns, or with ``takes_free`` in a place that was free."""

        def take() -> Seat | None:
            if not self.free[lane]:
                return None
            self.free[lane] -= 1
            self.given.append(name)
            self.taken.append(Seat(self, lane))
            return self.taken[-1]

        waiter = QueuedRequest(lane, name if sender is None else sender, tokens, priority, take, self.line)
        self.waiters.append(waiter)

        async def come() -> Seat:
            seat = take() if takes_free and not self.line.has_waiting(lane) else None
            return seat or await self.line.wait(waiter)

        task = asyncio.get_running_loop().create_task(come())
        self.tasks.append(task)
        await turns(1)
        return task

    async def serve(self, count: int = 1, lane: str = "m") -> None:
        """Let ``count`` requests come in, one after the other, and be done at once."""
        for _ in range(count):
            self.free[lane] += 1
            self.line.dispatch()
            self.free[lane] = 0
        await turns(2)

    def pass_time(self, seconds: float) -> None:
        """Let deadlines come, as the coarse clock would."""
        self.now += seconds
        for waiter in self.waiters:
            if waiter.deadline <= self.now:
                waiter.on_deadline(self.now)

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks)
        for task in self.tasks:
            if not task.cancelled():
                task.exception()
        assert self.line.count == 0


class Seat:
    """A place at a desk."""

    def __init__(self, desk: Desk, lane: str) -> None:
        self._desk = desk
        self._lane = lane
        self.closed = 0

    def close(self) -> None:
        self.closed += 1
        self._desk.free[self._lane] += 1
        self._desk.line.dispatch()


# --- whose turn it is


async def test_requests_of_equal_priority_go_in_order_of_arrival() -> None:
    desk = Desk()
    for name in "abcd":
        await desk.join(name)
    await desk.serve(4)
    assert desk.given == ["a", "b", "c", "d"]


async def test_higher_priority_goes_first() -> None:
    desk = Desk()
    for name, priority in (("low", -5), ("usual", 0), ("high", 7), ("again", float("inf")), ("high too", 7)):
        await desk.join(name, priority=priority)
    await desk.serve(5)
    assert desk.given == ["again", "high", "high too", "usual", "low"]


async def test_sender_that_floods_the_queue_waits_behind_its_own_requests() -> None:
    desk = Desk(requests=200)
    for _ in range(100):
        await desk.join("flood")
    await desk.join("now and then")
    await desk.serve(2)
    assert desk.given == ["flood", "now and then"]
    await desk.serve(99)
    assert desk.line.count == 0


async def test_steady_sender_is_not_held_back_by_a_flood() -> None:
    desk = Desk(requests=1000)
    for _ in range(500):
        await desk.join("flood")
    for _ in range(50):
        await desk.join("polite")
        await desk.serve(2)
    assert desk.given.count("polite") == 50
    await desk.close()


async def test_new_sender_gets_no_credit_for_the_past() -> None:
    desk = Desk()
    for _ in range(20):
        await desk.join("a")
        await desk.join("b")
    await desk.serve(20)
    for _ in range(10):
        await desk.join("newcomer")
    await desk.serve(9)
    assert 3 <= Counter(desk.given[20:])["newcomer"] <= 4
    await desk.close()


async def test_shares_are_counted_in_tokens_not_in_requests() -> None:
    desk = Desk(requests=1000)
    for _ in range(200):
        await desk.join("large", tokens=1000)
        await desk.join("small", tokens=100)
    await desk.serve(110)
    shares = Counter(desk.given)
    assert 98 <= shares["small"] <= 101
    await desk.close()


async def test_requests_for_a_busy_model_do_not_block_others() -> None:
    desk = Desk()
    await desk.join("first, for the busy one", lane="busy", priority=9)
    await desk.join("second", lane="free")
    await desk.join("third", lane="free")
    await desk.serve(2, lane="free")
    assert desk.given == ["second", "third"]
    assert (desk.line.has_waiting("busy"), desk.line.has_waiting("free")) == (True, False)
    await desk.close()


async def test_all_free_slots_are_granted_at_once_in_order_over_all_lanes() -> None:
    desk = Desk()
    for name, lane, priority in (("a1", "a", 0), ("b1", "b", 5), ("a2", "a", 9), ("b2", "b", 1)):
        await desk.join(name, lane=lane, priority=priority)
    desk.free.update(a=2, b=2)
    desk.line.dispatch()
    assert desk.given == ["a2", "b1", "b2", "a1"]
    await turns(2)


async def test_position_counts_the_requests_ahead_in_the_lane() -> None:
    desk = Desk()
    for name, priority in (("a", 0), ("b", 0), ("c", 1)):
        await desk.join(name, priority=priority)
    await desk.join("elsewhere", lane="other", priority=9)
    assert [desk.line.position(waiter) for waiter in desk.waiters] == [2, 2, 1, 1]
    desk.tasks[2].cancel()
    await turns(2)
    assert [desk.line.position(waiter) for waiter in desk.waiters[:2]] == [1, 1]
    await desk.close()


# --- bounds


async def test_full_queue_is_429_with_retry_after() -> None:
    desk = Desk(requests=2, seconds=17)
    await desk.join()
    await desk.join()
    with pytest.raises(CapacityError) as raised:
        await (await desk.join())
    assert (raised.value.status, raised.value.code) == (429, "queue_full")
    assert raised.value.retry_after_seconds == 17  # nothing is known of the rate: when places become free for sure
    assert (desk.line.count, desk.line.rejections) == (2, 1)
    await desk.close()


@pytest.mark.parametrize(
    ("every_seconds", "waiting", "expected"),
    [(0.1, 9, (1, 1.6)), (0.01, 0, (1, 1)), (2.0, 19, (36, 45)), (9.0, 19, (119, 120))],
    ids=["ten a second", "at least a second", "one in two seconds", "two minutes at most"],
)
async def test_retry_after_follows_the_recent_dispatch_rate(
    every_seconds: float, waiting: int, expected: tuple[float, float]
) -> None:
    desk = Desk(requests=1000)
    await desk.join("stays", lane="other")
    for _ in range(500):
        await desk.join()
        await desk.serve()
        desk.now += every_seconds
        if desk.now > 1100:
            break
    for _ in range(waiting - 1):
        await desk.join()
    least, most = expected
    assert least <= desk.line.retry_after_seconds() <= most
    await desk.close()


async def test_old_dispatch_rate_is_no_estimate() -> None:
    desk = Desk(seconds=17)
    await desk.join()
    await desk.serve()
    assert desk.line.seconds_for(1) is not None
    desk.now += 1000
    assert desk.line.seconds_for(1) is None
    assert desk.line.retry_after_seconds() == 17


async def test_request_that_waited_too_long_is_503() -> None:
    desk = Desk(seconds=30)
    task = await desk.join()
    desk.pass_time(29.9)
    assert desk.line.count == 1
    desk.pass_time(0.2)
    with pytest.raises(CapacityError) as raised:
        await task
    assert (raised.value.status, raised.value.code) == (503, "queue_timeout")
    assert raised.value.retry_after_seconds is not None
    assert (desk.line.count, desk.line.timeouts) == (0, 1)
    await desk.serve()
    assert desk.given == []


def test_deadlines_end_waits_and_forget_requests_that_left() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        deadlines = Deadlines(clock=loop.time)
        line = RequestQueue[Seat](QueueLimits(10, 30), deadlines)
        watch = loop.create_task(deadlines.run())
        waiters = [QueuedRequest("m", "s", 1.0, 0, lambda: None, line) for _ in range(2)]
        tasks = [loop.create_task(line.wait(waiter)) for waiter in waiters]
        await asyncio.sleep(29)
        tasks[0].cancel()
        await asyncio.sleep(1.5)
        assert tasks[0].cancelled()
        assert isinstance(tasks[1].exception(), CapacityError)
        assert [waiter.deadline for waiter in waiters][1] == NEVER
        assert line.timeouts == 1
        watch.cancel()
        await asyncio.wait([watch])

    run(scenario())


async def test_request_that_waits_in_vain_fails_at_once_and_blocks_no_other() -> None:
    desk = Desk()

    def refuse() -> Seat:
        raise CapacityError("nobody is there")

    waiter = QueuedRequest("gone", "s", 1.0, 9, refuse, desk.line)
    task = asyncio.get_running_loop().create_task(desk.line.wait(waiter))
    await turns(1)
    await desk.join("other")
    await desk.serve()
    with pytest.raises(CapacityError, match="nobody is there"):
        await task
    assert desk.given == ["other"]


# --- who leaves


async def test_request_that_left_is_skipped() -> None:
    desk = Desk()
    for name in "abc":
        await desk.join(name)
    desk.tasks[0].cancel()
    await turns(2)
    assert desk.line.count == 2
    await desk.serve(2)
    assert desk.given == ["b", "c"]


async def test_request_that_is_leaving_gets_no_lease() -> None:
    desk = Desk()
    for name in "ab":
        await desk.join(name)
    desk.tasks[0].cancel()  # and has had no turn yet to leave the line
    desk.free["m"] = 1
    desk.line.dispatch()
    await turns(3)
    assert (desk.given, desk.line.count) == (["b"], 0)
    assert desk.tasks[0].cancelled()


async def test_lease_granted_at_the_moment_of_leaving_goes_to_the_next_request() -> None:
    desk = Desk()
    for name in "ab":
        await desk.join(name)
    desk.free["m"] = 1
    desk.line.dispatch()
    desk.tasks[0].cancel()
    await turns(4)
    assert desk.given == ["a", "b"]
    assert [seat.closed for seat in desk.taken] == [1, 0]
    assert desk.tasks[0].cancelled()


async def test_timeout_of_a_request_that_is_leaving_does_no_harm() -> None:
    desk = Desk(seconds=30)
    task = await desk.join()
    task.cancel()
    desk.pass_time(31)
    await turns(2)
    assert task.cancelled()
    assert (desk.line.count, desk.line.timeouts) == (0, 0)


async def test_leaving_twice_does_no_harm() -> None:
    desk = Desk()
    task = await desk.join()
    task.cancel()
    await turns(1)
    task.cancel()
    await turns(1)
    assert desk.line.count == 0


async def test_requests_that_left_are_forgotten_behind_one_that_stays() -> None:
    desk = Desk(requests=10)
    await desk.join("stays")
    for _ in range(5000):
        task = await desk.join("leaves", lane=f"{len(desk.tasks) % 3}")
        task.cancel()
        await turns(1)
    kept = sum(len(lane) for lane in desk.line._lanes.values())  # noqa: SLF001 - that it is bounded
    assert desk.line.count == 1
    assert kept < 1500
    await desk.close()


# --- whatever happens

_senders = st.sampled_from(["a", "b", "c"])
_lanes = st.sampled_from(["x", "y"])
_steps = st.one_of(
    st.tuples(st.just("join"), _lanes, _senders, st.integers(0, 2)),
    st.tuples(st.just("cancel"), st.integers(0, 50)),
    st.tuples(st.just("free"), _lanes, st.integers(1, 3)),
    st.tuples(st.just("close"), st.integers(0, 50)),
    st.tuples(st.just("time"), st.sampled_from([1.0, 20.0])),
    st.tuples(st.just("turn"), st.integers(1, 2)),
)


async def take_steps(steps: list[tuple[Any, ...]], seed: int) -> None:
    desk = Desk(requests=8)
    places: Counter[str] = Counter()
    draw = random.Random(seed)
    for step in steps:
        match step:
            case ("join", str(lane), str(sender), int(priority)):
                await desk.join(sender, lane, tokens=draw.uniform(1, 50), priority=priority, takes_free=True)
            case ("cancel", int(which)) if desk.tasks:
                desk.tasks[which % len(desk.tasks)].cancel()
            case ("free", str(lane), int(count)):
                places[lane] += count
                desk.free[lane] += count
                desk.line.dispatch()
            case ("close", int(which)) if done := [task for task in desk.tasks if seat_of(task) is not None]:
                seat = seat_of(done[which % len(done)])
                assert seat is not None
                if not seat.closed:
                    seat.close()
            case ("time", float(seconds)):
                desk.pass_time(seconds)
            case ("turn", int(count)):
                await turns(count)
        assert 0 <= desk.line.count <= 8
    await turns(3)
    assert desk.line.count == sum(not task.done() for task in desk.tasks)
    for lane in places:
        held = [seat for task in desk.tasks if (seat := seat_of(task)) and not seat.closed]
        assert desk.free[lane] + sum(seat._lane == lane for seat in held) == places[lane]  # noqa: SLF001
        assert not (desk.free[lane] and desk.line.has_waiting(lane))
    got = [seat for task in desk.tasks if (seat := seat_of(task)) is not None]
    assert len(set(got)) == len(got)
    await desk.close()
    assert all(seat.closed <= 1 for seat in desk.taken)
    assert not desk.line.has_waiting("x")
    assert not desk.line._lanes  # noqa: SLF001 - nothing is kept of those who left


def seat_of(task: asyncio.Task[Seat]) -> Seat | None:
    """What it got; ``None``: nothing, or nothing yet."""
    return task.result() if task.done() and not task.cancelled() and task.exception() is None else None


@given(st.lists(_steps, max_size=60), st.integers(0, 1000))
def test_no_lease_is_lost_or_granted_twice_whatever_happens(steps: list[tuple[Any, ...]], seed: int) -> None:
    run(take_steps(steps, seed))


async def test_request_that_lost_its_lease_always_fits_and_goes_first() -> None:
    desk = Desk(requests=1)
    await desk.join("in line")
    await desk.join("lost its place", priority=FIRST)
    assert desk.line.count == 2
    await desk.serve(2)
    assert desk.given == ["lost its place", "in line"]
