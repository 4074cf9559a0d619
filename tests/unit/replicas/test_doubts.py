"""Doubts about backends travel between processes, and take none out of rotation."""

from __future__ import annotations

import json

import pytest

from inference_engine_proxy_server.fleet.health import Health
from inference_engine_proxy_server.replicas.doubts import SharedDoubts
from support.clocked_pool import BUSY, Clock, publish, ready, ready_pool
from support.pools import Pool


class Process:
    """One process with three backends that are up."""

    def __init__(self, clock: Clock, name: str) -> None:
        self.pool: Pool = ready_pool(clock, 3)
        self.posted: list[bytes] = []
        self.doubts = SharedDoubts(self.pool.fleet, name, self.posted.append)

    def fails(self, times: int, at: int = 0) -> None:
        for _ in range(times):
            self.pool.fleet.report_failure(self.pool.backends[at], "it answered 500")


def tell(sender: Process, other: Process) -> None:
    for message in sender.posted:
        sender.doubts.hear(message)
        other.doubts.hear(message)
    sender.posted.clear()


def test_only_the_end_of_good_health_is_told_and_only_once() -> None:
    one = Process(clock := Clock(), "one")
    backend = one.pool.backends[0]
    publish(one.pool, 0, BUSY)
    assert one.posted == []
    one.pool.fleet.report_refused_connection(backend)
    one.pool.fleet.report_refused_connection(backend)
    assert [json.loads(message)["fails_requests"] for message in one.posted] == [False]
    clock.now += 1
    publish(one.pool, 0, ready())
    one.fails(5)
    assert [json.loads(message)["fails_requests"] for message in one.posted] == [False, True]


def test_a_doubted_backend_is_polled_at_once_and_is_the_last_choice_until_it_answers() -> None:
    one, other = Process(clock := Clock(), "one"), Process(clock, "other")
    backend = other.pool.backends[0]
    one.pool.fleet.report_refused_connection(one.pool.backends[0])
    tell(one, other)
    assert (backend.health.state, backend.takes_requests) == (Health.UP, True)
    assert backend.is_last_choice
    assert backend.recheck.is_set()
    publish(other.pool, 0, ready())
    assert not backend.is_last_choice
    assert not one.pool.backends[1].recheck.is_set()


def test_one_failure_suspends_a_backend_that_fails_requests_elsewhere_unless_it_has_succeeded() -> None:
    one, other = Process(clock := Clock(), "one"), Process(clock, "other")
    backend = other.pool.backends[0]
    for has_succeeded in (True, False):
        one.fails(5)
        tell(one, other)
        publish(other.pool, 0, ready())
        if has_succeeded:
            other.pool.fleet.report_success(backend, clock.now)
        other.fails(1)
        assert (backend.health.state is Health.SUSPECT) is not has_succeeded
        clock.now += 10
        one.pool.fleet.report_success(one.pool.backends[0], clock.now)
        other.pool.fleet.report_success(backend, clock.now)
        assert backend.health.state is Health.UP


def test_a_process_that_doubts_all_takes_none_from_the_others_and_causes_few_polls() -> None:
    one, other = Process(clock := Clock(), "one"), Process(clock, "other")
    polls = 0
    for _ in range(100):
        clock.now += 0.1
        for at in range(3):
            doubt = {"from": "one", "backend": one.pool.backends[at].url, "fails_requests": True}
            other.doubts.hear(json.dumps(doubt).encode())
            polls += other.pool.backends[at].recheck.is_set()
            other.pool.backends[at].recheck.clear()
            publish(other.pool, at, ready())
        assert {backend.health.state for backend in other.pool.backends} == {Health.UP}
    assert 3 * 8 <= polls <= 3 * 11  # one a second


def test_what_others_have_told_is_not_told_again() -> None:
    one, other = Process(clock := Clock(), "one"), Process(clock, "other")
    one.pool.fleet.report_refused_connection(one.pool.backends[0])
    tell(one, other)
    other.pool.fleet.report_refused_connection(other.pool.backends[0])
    assert other.posted == []


@pytest.mark.parametrize(
    "message", [b"", b"[]", b"{}", b'{"from": "one", "backend": "http://unknown", "fails_requests": 1}']
)
def test_nonsense_and_unknown_backends_are_left_alone(message: bytes) -> None:
    one = Process(Clock(), "one")
    one.doubts.hear(message)
    assert not any(backend.recheck.is_set() for backend in one.pool.backends)
