from __future__ import annotations

from inference_engine_proxy_server.telemetry.journal import BACKEND, Journal


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_event_repeated_within_a_minute_is_counted_and_keeps_its_id() -> None:
    journal = Journal(clock := Clock())
    for text in ("Request 1 went elsewhere.", "Request 2 went elsewhere."):
        clock.now += 50
        journal.note("retry", text, backend="http://a", like="broke")

    [event] = journal.since()

    assert (event.id, event.count, event.first_at, event.at) == (1, 2, 1050.0, 1100.0)
    assert event.text == "Request 2 went elsewhere."


def test_event_repeated_later_is_another_one() -> None:
    journal = Journal(clock := Clock())
    journal.note("state", f"Backend {BACKEND} is up.", backend="http://a")
    clock.now += 61
    journal.note("state", f"Backend {BACKEND} is up.", backend="http://a")

    assert [(event.id, event.count) for event in journal.since()] == [(1, 1), (2, 1)]


def test_events_of_other_kinds_and_backends_are_others() -> None:
    journal = Journal(Clock())
    for kind, backend in (("state", "http://a"), ("state", "http://b"), ("drain", "http://a")):
        journal.note(kind, "Something happened.", backend=backend)  # type: ignore[arg-type]

    assert [event.id for event in journal.since()] == [1, 2, 3]


def test_only_what_has_changed_is_returned() -> None:
    journal = Journal(Clock())
    journal.note("shed", "One.")
    journal.note("shed", "Two.")
    known = journal.changed
    assert journal.since(known) == []

    journal.note("shed", "One.")

    assert [(event.text, event.count) for event in journal.since(known)] == [("One.", 2)]


def test_memory_is_bounded() -> None:
    journal = Journal(Clock())
    for number in range(5000):
        journal.note("rejection", f"Number {number}: {'x' * 1000}")

    events = journal.since()

    assert (len(events), events[-1].id) == (1000, 5000)
    assert max(len(event.text) for event in events) <= 500
