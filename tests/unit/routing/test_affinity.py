"""Requests with an affinity go to their home backend; with scripted engines over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest

from inference_engine_proxy_server.backends.base import BackendState
from inference_engine_proxy_server.errors import CapacityError
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.routing.affinity import Affinity, AffinityTable
from inference_engine_proxy_server.routing.requirements import Requirements
from inference_engine_proxy_server.tasks.deadlines import Deadlines
from support.fakes.engine import FakeEngine, answering, http_reply
from support.fakes.front import until
from support.pools import READY, ForwardingFront, Pool, make_pool, publish
from support.ports import unused_url

LACKS = http_reply(b"its own 404", 404)
ASK = b"GET /v1/responses/resp_1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
BUSY = BackendState(ready=False, reason="busy", requests_processing=9.0, models=READY.models)


def two_backends(*, capacity: int | None = None) -> Pool:
    """A pool of two ready backends without connections."""
    pool = make_pool(["http://127.0.0.1:1", "http://127.0.0.1:2"], Deadlines())
    publish(pool, replace(READY, capacity=capacity))
    return pool


def tied_to(
    home: Backend | None, *, needed: bytes | None = b"responses resp_1", needs_slot: bool = True
) -> Requirements:
    return Requirements("m", needs_slot, affinity=Affinity(needed, None, home, creates_response=False, deletes=False))


def status_of(reply: bytes) -> int:
    return int(reply.split(b" ", 2)[1])


@asynccontextmanager
async def front(*replies: bytes) -> AsyncIterator[tuple[ForwardingFront, list[FakeEngine]]]:
    """A proxy in front of engines, each of which sends one of ``replies`` to every request."""
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(FakeEngine(answering(reply))) for reply in replies]
        yield await stack.enter_async_context(ForwardingFront(*engines)), engines


# --- the table of names


def test_only_the_most_recently_used_names_are_remembered() -> None:
    backends = two_backends().backends
    table = AffinityTable(lambda: backends)
    assert table.home(None) is table.home(b"a") is None
    table.remember(b"a", backends[0])
    table.remember(b"b", backends[0])
    table.remember(b"a", backends[1])
    for number in range(65_535):
        table.remember(b"%d" % number, backends[0])
    assert (table.home(b"a"), table.home(b"b"), table.home(b"0")) == (backends[1], None, backends[0])


def test_backend_that_left_the_fleet_is_no_home() -> None:
    fleet = list(two_backends().backends)
    table = AffinityTable(lambda: fleet)
    table.remember(b"a", fleet[0])
    del fleet[0]
    assert table.home(b"a") is None


# --- slots


def test_request_waits_for_its_full_home_only() -> None:
    pool = two_backends(capacity=1)
    home = pool.backends[0]
    place = pool.lease(tied_to(home))
    assert place is not None
    assert place.backend is home
    assert pool.lease(tied_to(home)) is None
    light = pool.lease(tied_to(home, needs_slot=False))
    assert light is not None
    assert light.backend is home
    assert pool.lease(Requirements("m")) is not None
    lane = pool.placement.lane
    assert lane(tied_to(home)) not in map(lane, (Requirements("m"), tied_to(pool.backends[1]), tied_to(None)))


def test_request_waits_for_its_full_draining_home() -> None:
    pool = two_backends(capacity=1)
    home = pool.backends[0]
    pool.set_draining(home)
    place = pool.lease(tied_to(home))
    assert place is not None
    assert pool.lease(tied_to(home)) is None
    place.close()
    assert pool.lease(tied_to(home)) is not None


def test_request_that_needs_no_slot_goes_to_its_busy_home() -> None:
    pool = two_backends()
    home = pool.backends[0]
    publish(pool, BUSY)
    assert pool.lease(tied_to(home)) is None
    light = pool.lease(tied_to(home, needs_slot=False))
    assert light is not None
    assert light.backend is home


def test_request_goes_to_its_suspended_home() -> None:
    pool = two_backends()
    home = pool.backends[0]
    for _ in range(5):
        pool.report_failure(home, "it answered 500")
    place = pool.lease(tied_to(home))
    assert place is not None
    assert place.backend is home


def test_request_for_an_unavailable_home_fails() -> None:
    pool = two_backends()
    pool.report_refused_connection(pool.backends[0])
    with pytest.raises(CapacityError) as raised:
        pool.lease(tied_to(pool.backends[0]))
    assert (raised.value.status, raised.value.code) == (503, "home_unavailable")


def test_conversation_moves_rather_than_wait() -> None:
    pool = two_backends(capacity=1)
    home, other = pool.backends
    wanted = tied_to(home, needed=None)
    assert pool.placement.lane(wanted) == pool.placement.lane(Requirements("m"))
    places = [pool.lease(wanted), pool.lease(wanted)]
    assert [place.backend for place in places if place is not None] == [home, other]
    pool.set_draining(home)
    for place in places:
        assert place is not None
        place.close()
    elsewhere = pool.lease(wanted)
    assert elsewhere is not None
    assert elsewhere.backend is other


# --- the search for a home


async def test_at_most_sixteen_backends_are_asked() -> None:
    async with front(*[LACKS] * 18) as (proxy, engines):
        reply = await proxy.send(ASK)
        assert reply.endswith(b"its own 404")
        assert sum(len(engine.requests) for engine in engines) == 16


async def test_reply_other_than_404_ends_the_search() -> None:
    for own in (http_reply(b"", 503, b"retry-after: 1\r\n"), http_reply(b"", 400), http_reply(b"", 405)):
        async with front(own, LACKS) as (proxy, engines):
            for _ in range(8):
                reply = await proxy.send(ASK)
                assert status_of(reply) == status_of(own)
            assert len(engines[0].requests) == 8


async def test_unreachable_backend_is_skipped_in_the_search() -> None:
    async with FakeEngine(answering(LACKS)) as engine:
        async with ForwardingFront(unused_url(), engine) as proxy:
            statuses = [status_of(await proxy.send(ASK)) for _ in range(4)]
            assert statuses[0] in (
                404,
                503,
            )  # 503: the unreachable backend was the last one left, and may have the resource
            assert statuses[1:] == [404] * 3  # it is known to be down, and its resources are lost
            assert proxy.budget_under_way == 0


async def test_error_reply_does_not_make_a_home() -> None:
    async with FakeEngine(answering(http_reply(b"", 400), LACKS)) as one, FakeEngine(answering(LACKS)) as other:
        async with ForwardingFront(one, other) as proxy:
            while not one.requests:
                await proxy.send(ASK)
            before = len(other.requests)
            await proxy.send(ASK)
            assert len(other.requests) == before + 1


async def test_queue_updates_alone_do_not_make_a_home() -> None:
    body = b'{"model": "m", "stream": true, "previous_response_id": "resp_1"}'
    head = b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Queue-Updates: true\r\n"
    async with FakeEngine(answering(LACKS)) as one, FakeEngine(answering(LACKS)) as other:
        async with ForwardingFront(one, other) as proxy:
            publish(proxy.pool, replace(READY, capacity=1))
            places = [proxy.pool.lease(Requirements("m")) for _ in range(2)]
            waiting = asyncio.get_running_loop().create_task(
                proxy.send(head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
            )
            await until(lambda: proxy.pool.queue.count == 1)
            await asyncio.sleep(0.05)
            for place in places:
                assert place is not None
                place.close()
            assert b": queued" in await waiting
            assert (len(one.requests), len(other.requests)) == (1, 1)
            await proxy.post(body, "/v1/responses")
            assert (len(one.requests), len(other.requests)) == (2, 2)
