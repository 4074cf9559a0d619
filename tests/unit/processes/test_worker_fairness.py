from __future__ import annotations

import pytest

from inference_engine_proxy_server.processes.shared_leases import SharedLeases
from inference_engine_proxy_server.processes.worker_fairness import SoleWorker, WorkerFairness


@pytest.mark.parametrize(
    ("leases", "waiting", "is_ours"),
    [
        pytest.param([3, 0], [5, 0], True, id="no other worker waits"),
        pytest.param([3, 0], [5, 1], False, id="another one has less, and waits"),
        pytest.param([3, 3], [5, 9], True, id="another one has as much"),
        pytest.param([2, 3], [1, 9], True, id="another one has more"),
        pytest.param([2, 3, 1], [1, 9, 0], True, id="a worker with fewer leases does not wait"),
        pytest.param([0, 0, 0], [1, 1, 1], True, id="no worker has leases"),
    ],
)
def test_free_slot_goes_to_the_waiting_worker_with_the_fewest_leases(
    leases: list[int], waiting: list[int], is_ours: bool
) -> None:
    board = SharedLeases(len(leases))
    for worker, (has, waits) in enumerate(zip(leases, waiting, strict=True)):
        board.leases[worker] = has
        WorkerFairness(board, worker).publish_waiting(waits)

    assert WorkerFairness(board, 0).is_ours() is is_ours
    assert any(WorkerFairness(board, worker).is_ours() for worker, waits in enumerate(waiting) if waits)


def test_waiting_requests_are_those_of_all_workers() -> None:
    shared = SharedLeases(3)
    for worker, waits in enumerate((5, 2, 1)):
        WorkerFairness(shared, worker).publish_waiting(waits)
    assert WorkerFairness(shared, 0).waiting(6) == 9
    assert SoleWorker().waiting(6) == 6
