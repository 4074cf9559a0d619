"""Requests wait in the right order and within limits; with fake leases, and a clock that tests advance."""

from __future__ import annotations

import asyncio
import math
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


class Lanes:
    """The free slots of some lanes, and the queue for them.

    Attributes:
        free: number of free slots, by lane.
        served: names of the requests that got a lease, in order.
        now: reading of the clock.
    """

    def __init__(self, *, requests: int = 100, seconds: float = 30, **free: int) -> None:
        self.now = 1000.0
        self.free = Counter(free)
        self.taken: list[FakeLease] = []
        self.served: list[str] = []
        self.deadlines = Deadlines(clock=lambda: self.now)
        self.queue = RequestQueue[FakeLease](QueueLimits(requests, seconds), self.deadlines)
        self.tasks: list[asyncio.Task[FakeLease]] = []
        self.requests: list[QueuedRequest[FakeLease]] = []

    async def join(
        self,
        name: str = "",
        lane: str = "m",
        *,
        sender: str | None = None,
        tokens: float = 1.0,
        priority: float = 0,
        takes_free: bool = False,
        most_seconds: float = math.inf,
        is_resumed: bool = False,
    ) -> asyncio.Task[FakeLease]:
        """Let a request wait, or with ``takes_free`` take a free slot at once; done when this returns."""

        def take() -> FakeLease | None:
            if not self.free[lane]:
                return None
            self.free[lane] -= 1
            self.served.append(name)
            self.taken.append(FakeLease(self, lane))
            return self.taken[-1]

        request = QueuedRequest(
            lane, name if sender is None else sender, tokens, priority, take, self.queue, most_seconds, is_resumed
        )
        self.requests.append(request)

        async def come() -> FakeLease:
            lease = take() if takes_free and not self.queue.has_waiting(lane) else None
            return lease or await self.queue.wait(request)

        task = asyncio.get_running_loop().create_task(come())
        self.tasks.append(task)
        await turns(1)
        return task

    async def serve(self, count: int = 1, lane: str = "m") -> None:
        """Let ``count`` waiting requests get a lease, one after the other, and end at once."""
        for _ in range(count):
            self.free[lane] += 1
            self.queue.dispatch()
            self.free[lane] = 0
        await turns(2)

    def pass_time(self, seconds: float) -> None:
        """Let deadlines expire, as the coarse clock would."""
        self.now += seconds
        for request in self.requests:
            if request.deadline <= self.now:
                request.on_deadline(self.now)

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks)
        for task in self.tasks:
            if not task.cancelled():
                task.exception()
        assert self.queue.count == 0


class FakeLease:
    """A lease on a slot of one lane."""

    def __init__(self, lanes: Lanes, lane: str) -> None:
        self._lanes = lanes
        self._lane = lane
        self.closed = 0

    def close(self) -> None:
        self.closed += 1
        self._lanes.free[self._lane] += 1
        self._lanes.queue.dispatch()


# --- order


async def test_requests_of_equal_priority_go_in_order_of_arrival() -> None:
    lanes = Lanes()
    for name in "abcd":
        await lanes.join(name)
    await lanes.serve(4)
    assert lanes.served == ["a", "b", "c", "d"]


async def test_higher_priority_goes_first() -> None:
    lanes = Lanes()
    for name, priority in (("low", -5), ("usual", 0), ("high", 7), ("again", float("inf")), ("high too", 7)):
        await lanes.join(name, priority=priority)
    await lanes.serve(5)
    assert lanes.served == ["again", "high", "high too", "usual", "low"]


async def test_sender_that_floods_the_queue_waits_behind_its_own_requests() -> None:
    lanes = Lanes(requests=200)
    for _ in range(100):
        await lanes.join("flood")
    await lanes.join("now and then")
    await lanes.serve(2)
    assert lanes.served == ["flood", "now and then"]
    await lanes.serve(99)
    assert lanes.queue.count == 0


async def test_steady_sender_is_not_held_back_by_a_flood() -> None:
    lanes = Lanes(requests=1000)
    for _ in range(500):
        await lanes.join("flood")
    for _ in range(50):
        await lanes.join("polite")
        await lanes.serve(2)
    assert lanes.served.count("polite") == 50
    await lanes.close()


async def test_new_sender_gets_no_credit_for_the_past() -> None:
    lanes = Lanes()
    for _ in range(20):
        await lanes.join("a")
        await lanes.join("b")
    await lanes.serve(20)
    for _ in range(10):
        await lanes.join("newcomer")
    await lanes.serve(9)
    assert 3 <= Counter(lanes.served[20:])["newcomer"] <= 4
    await lanes.close()


async def test_shares_are_counted_in_tokens_not_in_requests() -> None:
    lanes = Lanes(requests=1000)
    for _ in range(200):
        await lanes.join("large", tokens=1000)
        await lanes.join("small", tokens=100)
    await lanes.serve(110)
    shares = Counter(lanes.served)
    assert 98 <= shares["small"] <= 101
    await lanes.close()


async def test_requests_for_a_busy_model_do_not_block_others() -> None:
    lanes = Lanes()
    await lanes.join("first, for the busy one", lane="busy", priority=9)
    await lanes.join("second", lane="free")
    await lanes.join("third", lane="free")
    await lanes.serve(2, lane="free")
    assert lanes.served == ["second", "third"]
    assert (lanes.queue.has_waiting("busy"), lanes.queue.has_waiting("free")) == (True, False)
    await lanes.close()


async def test_all_free_slots_are_granted_at_once_in_order_over_all_lanes() -> None:
    lanes = Lanes()
    for name, lane, priority in (("a1", "a", 0), ("b1", "b", 5), ("a2", "a", 9), ("b2", "b", 1)):
        await lanes.join(name, lane=lane, priority=priority)
    lanes.free.update(a=2, b=2)
    lanes.queue.dispatch()
    assert lanes.served == ["a2", "b1", "b2", "a1"]
    await turns(2)


async def test_position_counts_the_requests_ahead_in_the_lane() -> None:
    lanes = Lanes()
    for name, priority in (("a", 0), ("b", 0), ("c", 1)):
        await lanes.join(name, priority=priority)
    await lanes.join("elsewhere", lane="other", priority=9)
    assert [lanes.queue.position(request) for request in lanes.requests] == [2, 2, 1, 1]
    lanes.tasks[2].cancel()
    await turns(2)
    assert [lanes.queue.position(request) for request in lanes.requests[:2]] == [1, 1]
    await lanes.close()


# --- bounds


async def test_full_queue_is_429_with_retry_after() -> None:
    lanes = Lanes(requests=2, seconds=17)
    await lanes.join()
    await lanes.join()
    with pytest.raises(CapacityError) as raised:
        await (await lanes.join())
    assert (raised.value.status, raised.value.code) == (429, "queue_full")
    assert (
        raised.value.retry_after_seconds == 17
    )  # the dispatch rate is unknown; after this time, every waiting request has timed out
    assert (lanes.queue.count, lanes.queue.rejections) == (2, 1)
    await lanes.close()


@pytest.mark.parametrize(
    ("every_seconds", "waiting", "expected"),
    [(0.1, 9, (1, 1.6)), (0.01, 0, (1, 1)), (2.0, 19, (36, 45)), (9.0, 19, (119, 120))],
    ids=["ten a second", "at least a second", "one in two seconds", "two minutes at most"],
)
async def test_retry_after_follows_the_recent_dispatch_rate(
    every_seconds: float, waiting: int, expected: tuple[float, float]
) -> None:
    lanes = Lanes(requests=1000)
    await lanes.join("stays", lane="other")
    for _ in range(500):
        await lanes.join()
        await lanes.serve()
        lanes.now += every_seconds
        if lanes.now > 1100:
            break
    for _ in range(waiting - 1):
        await lanes.join()
    least, most = expected
    assert least <= lanes.queue.retry_after_seconds() <= most
    await lanes.close()


async def test_old_dispatch_rate_is_no_estimate() -> None:
    lanes = Lanes(seconds=17)
    await lanes.join()
    await lanes.serve()
    assert lanes.queue.seconds_for(1) is not None
    lanes.now += 1000
    assert lanes.queue.seconds_for(1) is None
    assert lanes.queue.retry_after_seconds() == 17


async def test_request_that_waited_too_long_is_503() -> None:
    lanes = Lanes(seconds=30)
    task = await lanes.join()
    lanes.pass_time(29.9)
    assert lanes.queue.count == 1
    lanes.pass_time(0.2)
    with pytest.raises(CapacityError) as raised:
        await task
    assert (raised.value.status, raised.value.code) == (503, "queue_timeout")
    assert raised.value.retry_after_seconds is not None
    assert (lanes.queue.count, lanes.queue.timeouts) == (0, 1)
    await lanes.serve()
    assert lanes.served == []


async def test_a_request_may_wait_for_less_than_usual() -> None:
    lanes = Lanes(seconds=30)
    task = await lanes.join(most_seconds=5)
    lanes.pass_time(4.9)
    assert lanes.queue.count == 1
    lanes.pass_time(0.2)
    with pytest.raises(CapacityError, match="No backend was free in time"):
        await task


async def test_a_request_whose_client_has_a_part_of_the_reply_waits_as_long_as_it_takes() -> None:
    lanes = Lanes(seconds=30)
    await lanes.join("resumed", most_seconds=2, is_resumed=True)
    lanes.pass_time(3000)
    assert lanes.queue.count == 1
    await lanes.serve()
    assert lanes.served == ["resumed"]


async def test_a_request_that_is_expected_to_wait_for_too_long_does_not_wait() -> None:
    lanes = Lanes(requests=1000)
    await lanes.join("stays", lane="other")
    for _ in range(50):
        await lanes.join()
        await lanes.serve()
        lanes.now += 2
    [*_, patient] = [await lanes.join(most_seconds=15) for _ in range(5)]
    hasty = await lanes.join(most_seconds=3)
    with pytest.raises(CapacityError, match="expected to be free"):
        await hasty
    assert not patient.done()
    await lanes.close()


def test_deadlines_end_waits_and_forget_requests_that_left() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        deadlines = Deadlines(clock=loop.time)
        line = RequestQueue[FakeLease](QueueLimits(10, 30), deadlines)
        watch = loop.create_task(deadlines.run())
        requests = [QueuedRequest("m", "s", 1.0, 0, lambda: None, line) for _ in range(2)]
        tasks = [loop.create_task(line.wait(request)) for request in requests]
        await asyncio.sleep(29)
        tasks[0].cancel()
        await asyncio.sleep(1.5)
        assert tasks[0].cancelled()
        assert isinstance(tasks[1].exception(), CapacityError)
        assert [request.deadline for request in requests][1] == NEVER
        assert line.timeouts == 1
        watch.cancel()
        await asyncio.wait([watch])

    run(scenario())


async def test_request_that_waits_in_vain_fails_at_once_and_blocks_no_other() -> None:
    lanes = Lanes()

    def refuse() -> FakeLease:
        raise CapacityError("no backend is live")

    request = QueuedRequest("gone", "s", 1.0, 9, refuse, lanes.queue)
    task = asyncio.get_running_loop().create_task(lanes.queue.wait(request))
    await turns(1)
    await lanes.join("other")
    await lanes.serve()
    with pytest.raises(CapacityError, match="no backend is live"):
        await task
    assert lanes.served == ["other"]


# --- leaving


async def test_request_that_left_is_skipped() -> None:
    lanes = Lanes()
    for name in "abc":
        await lanes.join(name)
    lanes.tasks[0].cancel()
    await turns(2)
    assert lanes.queue.count == 2
    await lanes.serve(2)
    assert lanes.served == ["b", "c"]


async def test_request_that_is_leaving_gets_no_lease() -> None:
    lanes = Lanes()
    for name in "ab":
        await lanes.join(name)
    lanes.tasks[0].cancel()  # it has not run since, so it is still in the queue
    lanes.free["m"] = 1
    lanes.queue.dispatch()
    await turns(3)
    assert (lanes.served, lanes.queue.count) == (["b"], 0)
    assert lanes.tasks[0].cancelled()


async def test_lease_granted_at_the_moment_of_leaving_goes_to_the_next_request() -> None:
    lanes = Lanes()
    for name in "ab":
        await lanes.join(name)
    lanes.free["m"] = 1
    lanes.queue.dispatch()
    lanes.tasks[0].cancel()
    await turns(4)
    assert lanes.served == ["a", "b"]
    assert [lease.closed for lease in lanes.taken] == [1, 0]
    assert lanes.tasks[0].cancelled()


async def test_timeout_of_a_request_that_is_leaving_has_no_effect() -> None:
    lanes = Lanes(seconds=30)
    task = await lanes.join()
    task.cancel()
    lanes.pass_time(31)
    await turns(2)
    assert task.cancelled()
    assert (lanes.queue.count, lanes.queue.timeouts) == (0, 0)


async def test_leaving_twice_has_no_further_effect() -> None:
    lanes = Lanes()
    task = await lanes.join()
    task.cancel()
    await turns(1)
    task.cancel()
    await turns(1)
    assert lanes.queue.count == 0


async def test_requests_that_left_are_forgotten_behind_one_that_stays() -> None:
    lanes = Lanes(requests=10)
    await lanes.join("stays")
    for _ in range(5000):
        task = await lanes.join("leaves", lane=f"{len(lanes.tasks) % 3}")
        task.cancel()
        await turns(1)
    kept = sum(len(lane) for lane in lanes.queue._lanes.values())  # noqa: SLF001 - that it is bounded
    assert lanes.queue.count == 1
    assert kept < 1500
    await lanes.close()


# --- any sequence of events

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
    lanes = Lanes(requests=8)
    places: Counter[str] = Counter()
    draw = random.Random(seed)
    for step in steps:
        match step:
            case ("join", str(lane), str(sender), int(priority)):
                await lanes.join(sender, lane, tokens=draw.uniform(1, 50), priority=priority, takes_free=True)
            case ("cancel", int(which)) if lanes.tasks:
                lanes.tasks[which % len(lanes.tasks)].cancel()
            case ("free", str(lane), int(count)):
                places[lane] += count
                lanes.free[lane] += count
                lanes.queue.dispatch()
            case ("close", int(which)) if done := [task for task in lanes.tasks if lease_of(task) is not None]:
                lease = lease_of(done[which % len(done)])
                assert lease is not None
                if not lease.closed:
                    lease.close()
            case ("time", float(seconds)):
                lanes.pass_time(seconds)
            case ("turn", int(count)):
                await turns(count)
        assert 0 <= lanes.queue.count <= 8
    await turns(3)
    assert lanes.queue.count == sum(not task.done() for task in lanes.tasks)
    for lane in places:
        held = [lease for task in lanes.tasks if (lease := lease_of(task)) and not lease.closed]
        assert lanes.free[lane] + sum(lease._lane == lane for lease in held) == places[lane]  # noqa: SLF001
        assert not (lanes.free[lane] and lanes.queue.has_waiting(lane))
    got = [lease for task in lanes.tasks if (lease := lease_of(task)) is not None]
    assert len(set(got)) == len(got)
    await lanes.close()
    assert all(lease.closed <= 1 for lease in lanes.taken)
    assert not lanes.queue.has_waiting("x")
    assert not lanes.queue._lanes  # noqa: SLF001 - nothing is kept of requests that left


def lease_of(task: asyncio.Task[FakeLease]) -> FakeLease | None:
    """The lease that the request got; ``None`` if it got none, or none yet."""
    return task.result() if task.done() and not task.cancelled() and task.exception() is None else None


@given(st.lists(_steps, max_size=60), st.integers(0, 1000))
def test_no_lease_is_lost_or_granted_twice_whatever_happens(steps: list[tuple[Any, ...]], seed: int) -> None:
    run(take_steps(steps, seed))


async def test_request_that_lost_its_lease_always_fits_and_goes_first() -> None:
    lanes = Lanes(requests=1)
    await lanes.join("in line")
    await lanes.join("lost its place", priority=FIRST)
    assert lanes.queue.count == 2
    await lanes.serve(2)
    assert lanes.served == ["lost its place", "in line"]


async def test_queue_in_a_debugger_shows_its_requests() -> None:
    lanes = Lanes()
    await lanes.join("a", lane="m", sender="key one")
    assert repr(lanes.queue) == "<RequestQueue 1 waiting in 1 lanes>"
    assert repr(lanes.requests[0]) == "<QueuedRequest waits lane='m' sender='key one' priority=0>"
    await lanes.close()
    assert repr(lanes.requests[0]).startswith("<QueuedRequest left")


async def test_waiting_requests_are_listed_with_their_positions() -> None:
    lanes = Lanes()
    for name, lane, priority in (("a", "m", 0), ("b", "m", 5), ("c", "n", 0), ("d", "m", 0)):
        await lanes.join(name, lane, priority=priority)
    lanes.tasks[3].cancel()
    await turns(3)

    listed = [(lanes.requests.index(request), position) for request, position in lanes.queue.waiting()]

    assert sorted(listed) == [(0, 2), (1, 1), (2, 1)]
    assert all(lanes.queue.position(lanes.requests[at]) == position for at, position in listed)
    await lanes.close()
