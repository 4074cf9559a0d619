from __future__ import annotations

from collections.abc import Sequence

from inference_engine_proxy_server.dashboard.live_requests import RequestsPart
from inference_engine_proxy_server.dashboard.merged_events import MergedEvents
from inference_engine_proxy_server.dashboard.traffic import Sums, Window
from inference_engine_proxy_server.dashboard.worker_part import JournalPosition, WorkerPart
from inference_engine_proxy_server.telemetry.journal import Journal, Kind

A = "http://a"


class Worker:
    """A worker's journal, whose clock the test sets."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.now = 1000.0
        self.journal = Journal(lambda: self.now)

    def note(self, at: float, kind: Kind, text: str) -> None:
        self.now = at
        self.journal.note(kind, text, backend=A)

    def part(self, known: int = 0) -> WorkerPart:
        window = Window(1.0, Sums(), {})
        position = JournalPosition(f"process-{self.number}", self.journal.changed)
        events = self.journal.since(known)
        return WorkerPart(self.number, RequestsPart(), window, window, {}, events, position, {}, None, None)


def texts(merged: MergedEvents, known: int = 0) -> Sequence[tuple[int, str, int]]:
    return [(event.id, event.event.text, event.count) for event in merged.since(known)]


def test_events_are_in_the_order_of_their_times() -> None:
    one, other, merged = Worker(0), Worker(1), MergedEvents()
    one.note(1, "retry", "First.")
    other.note(2, "resume", "Second.")
    one.note(3, "resume", "Third.")

    merged.take([one.part(), other.part()])

    assert texts(merged) == [(1, "First.", 1), (2, "Second.", 1), (3, "Third.", 1)]


def test_change_of_a_backend_that_all_workers_notice_is_one_event() -> None:
    workers, merged = [Worker(0), Worker(1)], MergedEvents()
    for worker in workers:
        worker.note(10 + worker.number, "state", "It is down.")
        worker.note(20 + worker.number, "state", "It is up.")

    merged.take(worker.part() for worker in workers)

    assert texts(merged) == [(1, "It is down.", 1), (2, "It is up.", 1)]


def test_requests_of_different_workers_are_different_events() -> None:
    workers, merged = [Worker(0), Worker(1)], MergedEvents()
    for worker in workers:
        worker.note(10, "retry", "It went elsewhere.")

    merged.take(worker.part() for worker in workers)

    assert [count for _, _, count in texts(merged)] == [1, 1]


def test_repeated_event_is_news_under_its_old_id() -> None:
    worker, merged = Worker(0), MergedEvents()
    worker.note(1, "retry", "It went elsewhere.")
    worker.note(1, "shed", "It was rejected.")
    merged.take([worker.part()])
    known, changed = merged.changed, worker.journal.changed
    worker.note(2, "retry", "It went elsewhere.")

    merged.take([worker.part(changed)])

    assert texts(merged, known) == [(1, "It went elsewhere.", 2)]


def test_new_process_of_a_worker_has_new_events() -> None:
    before, merged = Worker(0), MergedEvents()
    before.note(1, "retry", "Before.")
    merged.take([before.part()])
    after = Worker(0)
    after.note(2, "retry", "After.")
    part = after.part()
    part.journal = JournalPosition("another process", 1)

    merged.take([part])

    assert [text for _, text, _ in texts(merged)] == ["Before.", "After."]


def test_memory_is_bounded() -> None:
    merged, worker, known = MergedEvents(), Worker(0), 0
    for number in range(6000):
        worker.note(number, "retry", f"Number {number}.")
        if number % 500 == 499:
            merged.take([worker.part(known)])
            known = worker.journal.changed

    assert len(merged.latest(10_000)) == 1000
    assert len(merged._by_note) <= 4001  # noqa: SLF001 - only memory shows whether notes are forgotten
