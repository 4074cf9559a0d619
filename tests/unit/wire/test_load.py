from __future__ import annotations

import pytest

from inference_engine_proxy_server.wire.load import Load


class Connection:
    """A connection that is idle until it is used or closed."""

    exchange = None

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.is_idle = True
        self.was_closed = False

    def close(self) -> None:
        self.is_idle = False
        self.was_closed = True


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def connections() -> list[Connection]:
    return [Connection(deadline) for deadline in (3.0, 1.0, 4.0, 2.0)]


@pytest.fixture
def load(clock: Clock, connections: list[Connection]) -> Load:
    load = Load(clock, most_connections=4)
    for connection in connections:
        assert load.enter(connection)
    return load


def closed(connections: list[Connection]) -> list[float]:
    return [connection.deadline for connection in connections if connection.was_closed]


def test_idle_connections_are_closed_from_the_longest_idle_one_on(load: Load, connections: list[Connection]) -> None:
    for expected in ([1.0], [1.0, 2.0], [3.0, 1.0, 2.0]):
        assert load.close_longest_idle()
        assert closed(connections) == expected


def test_a_connection_used_since_the_search_is_skipped(load: Load, connections: list[Connection]) -> None:
    assert load.close_longest_idle()
    connections[3].deadline = 9.0  # was used, and is idle again
    connections[0].is_idle = False  # is in use
    assert load.close_longest_idle()
    assert closed(connections) == [1.0, 4.0]


def test_a_search_without_results_is_not_repeated_at_once(
    load: Load, clock: Clock, connections: list[Connection]
) -> None:
    for connection in connections:
        connection.is_idle = False
    assert not load.close_longest_idle()
    connections[0].is_idle = True
    assert not load.close_longest_idle()
    clock.now += 1
    assert load.close_longest_idle()


def test_rejected_connections_do_not_count_towards_the_limit(load: Load, connections: list[Connection]) -> None:
    for connection in connections:
        connection.is_idle = False
    refused = [Connection(5.0) for _ in range(9)]
    for connection in refused:
        assert not load.is_flooded
        assert not load.enter(connection)
    assert load.is_flooded
    load.leave(refused[0])
    assert not load.is_flooded
    load.leave(connections[0])
    assert load.enter(Connection(6.0))


def test_a_burst_closes_as_many_idle_connections_as_it_needs(clock: Clock) -> None:
    load = Load(clock, most_connections=3000)
    for number in range(3000):
        assert load.enter(Connection(float(number)))
    assert all(load.close_longest_idle() for _ in range(3000))
    assert not load.close_longest_idle()
