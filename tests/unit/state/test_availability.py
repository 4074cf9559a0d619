"""Whether the server is available: what is logged, and how long the pauses are."""

from __future__ import annotations

import logging

import pytest

from inference_engine_proxy_server.state.availability import Availability


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_each_change_is_logged_once(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    server = Availability("redis://redis", clock)

    for _ in range(5):
        server.failed("no answer")
    clock.now += 42
    assert [server.succeeded() for _ in range(3)] == [True, False, False]

    assert [(record.levelname, record.getMessage().partition(": ")[2][:40]) for record in caplog.records] == [
        ("WARNING", "redis://redis cannot be used: no answer."),
        ("WARNING", "redis://redis answers again, after 42 s"),
    ]
    assert (server.failures, server.since, server.is_available) == (1, 1042, True)


def test_a_first_connection_is_no_recovery(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert Availability("redis://redis", clock).succeeded()
    assert [record.getMessage() for record in caplog.records] == ["shared state: connected to redis://redis"]


def test_pauses_grow_to_five_seconds_and_are_random(clock: Clock) -> None:
    server = Availability("redis://redis", clock)
    longest = []
    for _ in range(8):
        server.failed("no answer")
        pauses = {server.pause_seconds() for _ in range(50)}
        assert len(pauses) > 40
        assert min(pauses) >= max(pauses) / 2.2
        longest.append(max(pauses))
    assert longest[:5] == sorted(longest[:5])
    assert longest[0] <= 0.25
    assert 4 < longest[-1] <= 5


def test_a_server_that_answers_only_now_and_then_is_asked_less_and_less(clock: Clock) -> None:
    server = Availability("redis://redis", clock)
    for _ in range(6):
        server.failed("no answer")
        server.succeeded()
    assert server.pause_seconds() > 2

    clock.now += 31
    server.succeeded()
    server.failed("no answer")
    assert server.pause_seconds() <= 0.25
