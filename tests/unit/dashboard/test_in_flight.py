from __future__ import annotations

from inference_engine_proxy_server.dashboard.in_flight import MINUTES
from support.dashboards import Board

A, B = "http://a:1", "http://b:1"


def test_mean_of_a_minute_is_kept_once_it_is_complete() -> None:
    board = Board([A, B])
    lease = board.pool.occupy(board.pool.backends[0])
    for number in range(6):
        assert board.in_flight.means() == {}
        if number == 3:
            lease.close()
        board.in_flight.sample()

    assert board.in_flight.means() == {A: [0.5], B: [0.0]}


def test_last_hour_is_kept_and_backends_that_left_are_forgotten() -> None:
    board = Board([A, B])
    for _ in range(6 * (MINUTES + 3)):
        board.in_flight.sample()
    assert {url: len(means) for url, means in board.in_flight.means().items()} == {A: MINUTES, B: MINUTES}

    board.pool.replace(board.pool.backends[:1])
    for _ in range(6):
        board.in_flight.sample()

    assert board.in_flight.means().keys() == {A}


async def test_snapshot_has_sixty_minutes_with_unknown_ones_first() -> None:
    board = Board([A])
    for _ in range(12):
        board.in_flight.sample()

    moment = await board.reporter.moment(with_requests=True)

    [backend] = moment.snapshot.as_json(board.operators, [])["backends"]
    assert backend["recent"] == [None] * 58 + [0.0, 0.0]
