"""A backend that several workers use: each of two pools stands for the worker of a process."""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import replace
from functools import partial

from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.dispatch.backend_pool import BackendPool
from inference_engine_proxy_server.dispatch.request_queue import QueuedRequest, RequestQueue
from inference_engine_proxy_server.fleet.backend import Lease
from inference_engine_proxy_server.fleet.health_tracker import HealthTracker
from inference_engine_proxy_server.fleet.shared_backend import SharedBackend
from inference_engine_proxy_server.processes.shared_leases import SharedLeases
from inference_engine_proxy_server.processes.worker_fairness import WorkerFairness
from inference_engine_proxy_server.routing.requirements import Requirements
from inference_engine_proxy_server.tasks.deadlines import Deadlines
from inference_engine_proxy_server.wire.backend_connections import BackendConnections, BackendLimits, Origin
from support.pools import QUEUE, READY, RULES
from support.waiting import eventually

LIMITS = BackendLimits(connect_seconds=1, first_byte_seconds=1, pause_seconds=1, idle_seconds=1)
URLS = ("http://a:1", "http://b:1")


def nobody_waits() -> None:
    """When a place gets free."""


def backend_of(board: SharedLeases, worker: int, url: str = URLS[0], capacity: int | None = None) -> SharedBackend:
    deadlines = Deadlines()
    connections = BackendConnections(Origin.of(url), LIMITS, deadlines)
    config = BackendConfig(url=url, name=url, capacity=capacity)
    return SharedBackend(config, connections, HealthTracker(RULES, deadlines.clock()), board, worker)


def pool_of(board: SharedLeases, worker: int, capacity: int | None = None) -> BackendPool:
    """A pool of one worker; all of its backends are up."""
    backends = [backend_of(board, worker, url, capacity) for url in URLS]
    line: RequestQueue[Lease] = RequestQueue(QUEUE, Deadlines())
    pool = BackendPool(backends, line, refresh_seconds=3, turns=WorkerFairness(board, worker))
    for backend in backends:
        pool.publish(backend, READY, own_at_poll=0, asked_at=pool.clock())
    return pool


def leased(pool: BackendPool) -> Lease:
    lease = pool.lease(Requirements("m"))
    assert lease is not None
    return lease


def test_requests_of_all_workers_are_load_and_each_counts_its_own() -> None:
    board = SharedLeases(2)
    one, other = backend_of(board, 0), backend_of(board, 1)

    leases = [Lease(one, nobody_waits) for _ in range(3)] + [Lease(other, nobody_waits)]

    assert (one.leases, one.all_leases, one.load) == (3, 4, 4)
    assert (other.leases, other.all_leases, other.load) == (1, 4, 4)
    assert list(board.leases) == [3, 1]
    for lease in leases:
        lease.close()
        lease.close()
    assert (one.load, other.load, list(board.leases)) == (0, 0, [0, 0])


def test_what_another_process_notes_is_seen_at_once() -> None:
    board = SharedLeases(2)
    here = backend_of(board, 0)
    if not (child := os.fork()):
        with contextlib.suppress(BaseException):
            Lease(backend_of(board, 1), nobody_waits)
        os._exit(0)
    os.waitpid(child, 0)
    assert here.load == 1

    board.clear(1, [here.url])
    assert (here.load, list(board.leases)) == (0, [0, 0])


def test_a_burst_over_two_workers_is_even_without_a_poll() -> None:
    board = SharedLeases(2)
    pools = pool_of(board, 0), pool_of(board, 1)

    for number in range(20):
        leased(pools[number % 3 == 0])

    assert [backend.all_leases for backend in pools[0].backends] == [10, 10]


def test_what_siblings_have_is_not_taken_for_others_load() -> None:
    board = SharedLeases(2)
    pool = pool_of(board, 0)
    Lease(backend_of(board, 1), nobody_waits)
    backend = pool.backends[0]
    told = replace(READY, requests_processing=3.0)

    pool.publish(backend, told, own_at_poll=backend.all_leases, asked_at=pool.clock())

    assert backend.load == 3


def test_a_place_that_a_sibling_has_is_not_free() -> None:
    board = SharedLeases(2)
    pools = pool_of(board, 0, capacity=1), pool_of(board, 1, capacity=1)
    taken = [leased(pools[0]), leased(pools[0])]

    assert pools[1].lease(Requirements("m")) is None

    taken[0].close()
    assert pools[1].lease(Requirements("m")) is not None


def test_one_that_came_back_to_the_fleet_does_not_forget_what_it_had_before() -> None:
    board = SharedLeases(1)
    before = backend_of(board, 0)
    old = Lease(before, nobody_waits)
    again = backend_of(board, 0)
    new = Lease(again, nobody_waits)
    assert again.load == 2

    old.close()
    assert (again.leases, again.load) == (1, 1)
    new.close()
    assert (before.load, again.load, list(board.leases)) == (0, 0, [0])


async def test_who_waits_gets_a_place_that_another_worker_frees_and_not_one_worker_all() -> None:
    board = SharedLeases(2)
    pools = pool_of(board, 0, capacity=1), pool_of(board, 1, capacity=1)
    taken = [leased(pools[0]), leased(pools[0])]
    lines = [QueuedRequest("m", "x", 1.0, 0.0, partial(pool.place, Requirements("m")), pool.line) for pool in pools]
    loop = asyncio.get_running_loop()
    looking = [
        loop.create_task(pool.look_for_places(WorkerFairness(board, number))) for number, pool in enumerate(pools)
    ]
    waiting = [loop.create_task(pool.line.wait(waiter)) for pool, waiter in zip(pools, lines, strict=True)]
    await eventually(lambda: list(board.waiting) == [1, 1])

    taken[0].close()  # the first worker still has a place, the second none

    async with asyncio.timeout(5):
        await waiting[1]
    assert not waiting[0].done()
    taken[1].close()
    async with asyncio.timeout(5):
        await waiting[0]
    for task in looking:
        task.cancel()
    await asyncio.wait(looking)
