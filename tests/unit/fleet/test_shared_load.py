"""Several workers share the load of a backend; each of two pools stands for the worker of a process."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import replace
from functools import partial

from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.dispatch.leases import Lease
from inference_engine_proxy_server.dispatch.request_queue import QueuedRequest, RequestQueue
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.backend_load import SharedLoad
from inference_engine_proxy_server.fleet.fleet import Fleet
from inference_engine_proxy_server.fleet.health_tracker import HealthTracker
from inference_engine_proxy_server.processes.shared_leases import SharedLeases
from inference_engine_proxy_server.processes.worker_fairness import WorkerFairness
from inference_engine_proxy_server.routing.requirements import Requirements
from inference_engine_proxy_server.tasks.deadlines import Deadlines
from inference_engine_proxy_server.wire.backend_connections import BackendConnections, BackendLimits
from inference_engine_proxy_server.wire.origin import Origin
from support.pools import QUEUE, READY, RULES, Pool
from support.waiting import eventually

LIMITS = BackendLimits(connect_seconds=1, first_byte_seconds=1, pause_seconds=1, idle_seconds=1)
URLS = ("http://a:1", "http://b:1")


def backend_of(shared_leases: SharedLeases, worker: int, url: str = URLS[0], capacity: int | None = None) -> Backend:
    deadlines = Deadlines()
    connections = BackendConnections(Origin.of(url), LIMITS, deadlines)
    config = BackendConfig(url=url, name=url, capacity=capacity)
    return Backend(config, connections, HealthTracker(RULES, deadlines.clock()), SharedLoad(shared_leases, worker, url))


def pool_of(shared_leases: SharedLeases, worker: int, capacity: int | None = None) -> Pool:
    """The pool of one worker; all backends are up."""
    backends = [backend_of(shared_leases, worker, url, capacity) for url in URLS]
    queue = RequestQueue[Lease](QUEUE, Deadlines())
    pool = Pool(Fleet(backends, refresh_seconds=3), queue, fairness=WorkerFairness(shared_leases, worker))
    for backend in backends:
        pool.publish(backend, READY, own_at_poll=0, asked_at=pool.clock())
    return pool


def leased(pool: Pool) -> Lease:
    lease = pool.lease(Requirements("m"))
    assert lease is not None
    return lease


def test_leases_of_all_workers_are_load_and_each_counts_its_own() -> None:
    shared_leases = SharedLeases(2)
    one, other = backend_of(shared_leases, 0).load, backend_of(shared_leases, 1).load

    one.leases += 3
    other.leases += 1

    assert (one.leases, one.proxy_leases, one.total) == (3, 4, 4)
    assert (other.leases, other.proxy_leases, other.total) == (1, 4, 4)
    assert list(shared_leases.leases) == [3, 1]
    one.leases -= 3
    other.leases -= 1
    assert (one.total, other.total, list(shared_leases.leases)) == (0, 0, [0, 0])


def test_leases_of_another_process_count_at_once() -> None:
    shared_leases = SharedLeases(2)
    here = backend_of(shared_leases, 0)
    if not (child := os.fork()):
        with contextlib.suppress(BaseException):
            backend_of(shared_leases, 1).load.leases += 1
        os._exit(0)
    os.waitpid(child, 0)
    assert here.load.total == 1

    shared_leases.clear(1, [here.url])
    assert (here.load.total, list(shared_leases.leases)) == (0, [0, 0])


def test_burst_over_two_workers_is_spread_evenly_without_a_poll() -> None:
    shared_leases = SharedLeases(2)
    pools = pool_of(shared_leases, 0), pool_of(shared_leases, 1)

    for number in range(20):
        leased(pools[number % 3 == 0])

    assert [backend.load.proxy_leases for backend in pools[0].backends] == [10, 10]


def test_leases_of_siblings_are_not_foreign_load() -> None:
    shared_leases = SharedLeases(2)
    pool = pool_of(shared_leases, 0)
    backend_of(shared_leases, 1).load.leases += 1
    backend = pool.backends[0]
    state = replace(READY, requests_processing=3.0)

    pool.publish(backend, state, own_at_poll=backend.load.proxy_leases, asked_at=pool.clock())

    assert backend.load.total == 3


def test_slot_of_a_sibling_is_not_free() -> None:
    shared_leases = SharedLeases(2)
    pools = pool_of(shared_leases, 0, capacity=1), pool_of(shared_leases, 1, capacity=1)
    taken = [leased(pools[0]), leased(pools[0])]

    assert pools[1].lease(Requirements("m")) is None

    taken[0].close()
    assert pools[1].lease(Requirements("m")) is not None


def test_backend_that_comes_back_to_the_fleet_keeps_the_leases_it_had_before() -> None:
    shared_leases = SharedLeases(1)
    before, again = backend_of(shared_leases, 0).load, backend_of(shared_leases, 0).load
    before.leases += 1
    again.leases += 1
    assert again.total == 2

    before.leases -= 1
    assert (again.leases, again.total) == (1, 1)
    again.leases -= 1
    assert (before.total, again.total, list(shared_leases.leases)) == (0, 0, [0])


async def test_slot_that_another_worker_frees_goes_to_the_worker_with_fewer_leases() -> None:
    shared_leases = SharedLeases(2)
    pools = pool_of(shared_leases, 0, capacity=1), pool_of(shared_leases, 1, capacity=1)
    taken = [leased(pools[0]), leased(pools[0])]
    lines = [
        QueuedRequest("m", "x", 1.0, 0.0, partial(pool.try_lease, Requirements("m")), pool.queue) for pool in pools
    ]
    loop = asyncio.get_running_loop()
    looking = [loop.create_task(pool.dispatcher.fill_slots_of_siblings()) for number, pool in enumerate(pools)]
    waiting = [loop.create_task(pool.queue.wait(waiter)) for pool, waiter in zip(pools, lines, strict=True)]
    await eventually(lambda: list(shared_leases.waiting) == [1, 1])

    taken[0].close()  # the first worker still has a lease, the second has none

    async with asyncio.timeout(5):
        await waiting[1]
    assert not waiting[0].done()
    taken[1].close()
    async with asyncio.timeout(5):
        await waiting[0]
    for task in looking:
        task.cancel()
    await asyncio.wait(looking)
