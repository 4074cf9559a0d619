"""Leases count as load until they are closed, and free slots go to waiting requests in order."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import pytest

from inference_engine_proxy_server.dispatch.leases import Lease
from inference_engine_proxy_server.dispatch.request_queue import QueuedRequest
from inference_engine_proxy_server.errors import CapacityError, ProxyError
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.health import Health
from inference_engine_proxy_server.routing.requirements import Requirements
from support.clocked_pool import (
    BUSY,
    LOADING,
    Clock,
    lease_of,
    make_pool,
    pass_time,
    publish,
    ready,
    ready_pool,
    suspend,
)
from support.fakes.memory import turns
from support.pools import Pool


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Queue:
    """Requests in the queue of a pool.

    Attributes:
        served: leases of the requests that got one, by name, in order.
        failed: errors of the others.
    """

    def __init__(self, pool: Pool) -> None:
        self.served: dict[str, Lease] = {}
        self.failed: dict[str, Exception] = {}
        self._pool = pool
        self._tasks: list[asyncio.Task[None]] = []

    async def join(
        self, name: str, model: str | None = "m", *, excluded: Sequence[Backend] = (), priority: float = 0
    ) -> None:
        """Let a request wait, as the forwarder does."""
        assert self._pool.lease(Requirements(model), excluded) is None
        try_lease = partial(self._pool.try_lease, Requirements(model), excluded)
        lane = (model, *excluded) if excluded else model
        request = QueuedRequest(lane, name, 1.0, priority, try_lease, self._pool.queue)
        self._tasks.append(asyncio.get_running_loop().create_task(self._wait(name, request)))
        await turns(1)

    async def _wait(self, name: str, request: QueuedRequest[Lease]) -> None:
        try:
            self.served[name] = await self._pool.queue.wait(request)
        except ProxyError as error:
            self.failed[name] = error

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def test_burst_between_two_polls_is_spread_evenly(clock: Clock) -> None:
    pool = make_pool(clock, 4)
    for index in range(4):
        publish(pool, index, ready())
    shares = Counter(lease_of(pool, "m").backend.url for _ in range(64))
    assert sorted(shares.values()) == [16, 16, 16, 16]


def test_requests_even_out_foreign_load_without_herding(clock: Clock) -> None:
    pool = make_pool(clock, 4)
    for index, polled in enumerate((0, 3, 3, 3)):
        publish(pool, index, ready(polled))
    shares = Counter(lease_of(pool, "m").backend.url for _ in range(60))
    assert 17 <= shares[pool.backends[0].url] <= 18  # 69 requests in all over four backends
    assert max(shares.values()) <= 18


def test_closing_a_lease_twice_counts_once(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    publish(pool, 0, ready())
    first, second = lease_of(pool, "m"), lease_of(pool, "m")
    first.close()
    first.close()
    assert pool.backends[0].load.leases == 1
    second.close()
    assert (pool.backends[0].load.leases, pool.backends[0].load.total) == (0, 0)


def test_busy_fleet_grants_no_lease(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    publish(pool, 0, ready())
    publish(pool, 0, BUSY)
    assert pool.lease(Requirements("m")) is None


def test_leases_survive_a_failure_report(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    publish(pool, 0, ready())
    leases: list[Lease] = [lease_of(pool, "m") for _ in range(3)]
    pool.report_broken_connection(pool.backends[0])
    for lease in leases:
        lease.close()
    assert (pool.backends[0].load.leases, pool.backends[0].load.total) == (0, 0)


# --- slots


def test_backend_gets_no_more_requests_than_it_has_slots(clock: Clock) -> None:
    pool = ready_pool(clock, 2, capacity=3)
    leases = [lease_of(pool) for _ in range(6)]
    assert [backend.load.leases for backend in pool.backends] == [3, 3]
    assert pool.lease(Requirements("m")) is None
    leases[0].close()
    assert lease_of(pool).backend is leases[0].backend


def test_allowance_adds_to_the_slots(clock: Clock) -> None:
    pool = ready_pool(clock, 1, capacity=3, allowance=2)
    for _ in range(5):
        lease_of(pool)
    assert pool.lease(Requirements("m")) is None


def test_foreign_requests_occupy_slots(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    publish(pool, 0, replace(ready(processing=2), capacity=3))
    lease_of(pool)
    assert pool.lease(Requirements("m")) is None


def test_backend_of_unknown_capacity_is_never_full(clock: Clock) -> None:
    pool = ready_pool(clock, 1)
    for _ in range(1000):
        lease_of(pool)


# --- the queue


async def test_waiting_request_gets_a_slot_when_one_becomes_free(clock: Clock) -> None:
    pool = ready_pool(clock, 1, capacity=1)
    first = lease_of(pool)
    queue = Queue(pool)
    await queue.join("a")
    await queue.join("b")
    first.close()
    await turns(2)
    assert list(queue.served) == ["a"]
    queue.served["a"].close()
    await turns(2)
    assert list(queue.served) == ["a", "b"]
    queue.served["b"].close()
    assert (pool.queue.count, pool.requests_in_flight, pool.backends[0].load.total) == (0, 0, 0)


async def test_new_request_does_not_overtake_waiting_ones(clock: Clock) -> None:
    pool = ready_pool(clock, 1, capacity=1)
    first = lease_of(pool)
    queue = Queue(pool)
    await queue.join("a")
    pool.backends[0].load.limit += 1
    pool.candidate(pool.backends[0]).rerank()
    assert pool.lease(Requirements("m")) is None
    pool.queue.dispatch()
    assert pool.lease(Requirements("m")) is None
    await turns(2)
    assert list(queue.served) == ["a"]
    first.close()


async def test_new_request_for_another_model_does_not_wait(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    for index, model in enumerate(("a", "b")):
        publish(pool, index, replace(ready(models=[model]), capacity=1))
    lease_of(pool, "a")
    queue = Queue(pool)
    await queue.join("waits", "a")
    assert lease_of(pool, "b").backend is pool.backends[1]
    await queue.close()


async def test_request_that_a_backend_failed_goes_before_waiting_ones(clock: Clock) -> None:
    pool = ready_pool(clock, 2, capacity=1)
    leases = [lease_of(pool), lease_of(pool)]
    queue = Queue(pool)
    await queue.join("usual")
    await queue.join("failed once", excluded=[leases[0].backend], priority=float("inf"))
    leases[1].close()
    await turns(2)
    assert list(queue.served) == ["failed once"]
    leases[0].close()
    await turns(2)
    assert list(queue.served) == ["failed once", "usual"]


async def test_request_that_excludes_the_free_backend_does_not_block_others(clock: Clock) -> None:
    pool = ready_pool(clock, 2, capacity=1)
    leases = [lease_of(pool), lease_of(pool)]
    queue = Queue(pool)
    await queue.join("failed there", excluded=[leases[0].backend], priority=float("inf"))
    await queue.join("usual")
    leases[0].close()
    await turns(2)
    assert list(queue.served) == ["usual"]
    queue.served["usual"].close()
    assert lease_of(pool).backend is leases[0].backend
    await queue.close()


async def test_report_that_frees_a_slot_serves_waiting_requests(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    publish(pool, 0, BUSY)
    queue = Queue(pool)
    await queue.join("a", None)
    publish(pool, 0, ready())
    await turns(2)
    assert list(queue.served) == ["a"]


async def test_request_that_waits_for_a_backend_that_goes_down_fails(clock: Clock) -> None:
    pool = ready_pool(clock, 1, capacity=1)
    lease_of(pool)
    queue = Queue(pool)
    await queue.join("a")
    publish(pool, 0, LOADING)
    await turns(2)
    assert [type(error) for error in queue.failed.values()] == [CapacityError]
    assert pool.queue.count == 0


# --- trials


def test_trial_is_a_single_request(clock: Clock) -> None:
    pool = ready_pool(clock, 2)
    suspend(pool, 0)
    pass_time(pool, clock, 6)
    tried, other = pool.backends
    assert tried.takes_requests
    busy = [pool.occupy(other) for _ in range(9)]
    trial = lease_of(pool)
    assert trial.backend is tried
    assert {lease_of(pool).backend for _ in range(6)} == {other}
    pass_time(pool, clock, 1)
    assert {lease_of(pool).backend for _ in range(6)} == {other}
    pool.report_success(tried, sent_at=clock())
    trial.close()
    assert (tried.takes_requests, tried.health.state) == (True, Health.UP)
    for lease in busy:
        lease.close()


def test_trial_whose_client_left_is_followed_by_another(clock: Clock) -> None:
    pool = ready_pool(clock, 2)
    suspend(pool, 0)
    pass_time(pool, clock, 6)
    tried, other = pool.backends
    busy = [pool.occupy(other) for _ in range(9)]
    trial = lease_of(pool)
    assert trial.backend is tried
    trial.close()
    pass_time(pool, clock, 1)
    assert lease_of(pool).backend is tried
    for lease in busy:
        lease.close()


# --- drain and replacement


def test_draining_backend_gets_no_new_requests_until_it_is_undrained(clock: Clock) -> None:
    pool = ready_pool(clock, 2)
    drained, other = pool.backends
    lease = next(lease for lease in (lease_of(pool), lease_of(pool)) if lease.backend is drained)
    pool.set_draining(drained)
    assert {lease_of(pool).backend for _ in range(6)} == {other}
    assert drained.load.leases == 1
    lease.close()
    pass_time(pool, clock, 1)
    assert not drained.takes_requests
    pool.set_draining(drained, is_draining=False)
    assert lease_of(pool).backend is drained


async def test_undrained_backend_serves_waiting_requests(clock: Clock) -> None:
    pool = ready_pool(clock, 2, capacity=1)
    pool.set_draining(pool.backends[0])
    lease_of(pool)
    queue = Queue(pool)
    await queue.join("a")
    pool.set_draining(pool.backends[0], is_draining=False)
    await turns(2)
    assert queue.served["a"].backend is pool.backends[0]


async def test_new_fleet_serves_waiting_requests(clock: Clock) -> None:
    pool = ready_pool(clock, 1, capacity=1)
    gone = pool.backends[0]
    lease = lease_of(pool)
    queue = Queue(pool)
    await queue.join("a")
    newcomers = ready_pool(clock, 1).backends
    pool.replace(newcomers)
    await turns(2)
    assert queue.served["a"].backend is newcomers[0]
    assert (gone.takes_requests, gone.load.leases, pool.fleet.changed.is_set()) == (False, 1, True)
    lease.close()
    assert gone.load.leases == 0


async def test_request_waits_for_a_backend_that_broke_one_connection(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    publish(pool, 0, ready())
    pool.report_broken_connection(pool.backends[0])
    assert pool.lease(Requirements("m")) is None
    clock.now += 0.01
    pool.report_refusal(pool.backends[0])
    with pytest.raises(CapacityError):
        pool.lease(Requirements("m"))


def test_request_that_needs_no_slot_never_waits(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    publish(pool, 0, replace(ready(), capacity=1))
    lease_of(pool)
    assert pool.lease(Requirements("m")) is None
    assert pool.lease(Requirements("m", needs_slot=False)) is not None
