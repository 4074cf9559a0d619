from __future__ import annotations

from inference_engine_proxy_server.telemetry.finished_requests import Batch, FinishedRequests
from support.records import request_record


def test_each_record_is_handed_over_once_in_order_with_the_time_of_its_end() -> None:
    times = iter(range(1000))
    finished = FinishedRequests(lambda: float(next(times)))
    batches: list[Batch] = []
    finished.subscribe(batches.append)

    for number in range(200):
        finished.add(request_record(request_id=str(number)))

    assert len(batches) == 3  # the records that are left wait for more
    finished.hand_over()
    finished.hand_over()
    assert len(batches) == 4
    ended = [(record.request_id, at) for batch in batches for record, at in zip(*batch, strict=True)]
    assert ended == [(str(number), float(number)) for number in range(200)]


def test_all_subscribers_get_the_same_records() -> None:
    finished = FinishedRequests()
    first: list[Batch] = []
    second: list[Batch] = []
    finished.subscribe(first.append)
    finished.subscribe(second.append)

    finished.add(request_record())
    finished.hand_over()

    assert first == second
    assert len(first) == 1


def test_subscriber_may_ask_for_waiting_records_while_it_gets_some() -> None:
    finished = FinishedRequests()
    seen: list[str] = []

    def see(batch: Batch) -> None:
        seen.extend(record.request_id for record in batch.records)
        finished.hand_over()

    finished.subscribe(see)
    finished.add(request_record(request_id="a"))
    finished.hand_over()

    assert seen == ["a"]
