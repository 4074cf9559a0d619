"""What a backend has still to read follows what is sent there and the first tokens that come back."""

from __future__ import annotations

import pytest

from inference_engine_proxy_server.routing.expected_time.pending_work import PendingWork, compare


def a_workload(reads: float = 1000.0) -> PendingWork:
    work = PendingWork()
    for _ in range(3):
        work.speeds.note_reading(1000, 1000 / reads)
    compare([work])
    return work


def test_what_is_ahead_is_what_was_sent_less_the_time_since() -> None:
    work = a_workload()
    work.send(2000, 10.0, is_streamed=True)
    work.send(1000, 10.5, is_streamed=True)

    assert work.seconds_ahead(11.0) == pytest.approx(2.0)


def test_first_token_tells_that_all_before_it_has_been_read() -> None:
    work = a_workload()
    work.send(2000, 0.0, is_streamed=False)
    second = work.send(1000, 0.0, is_streamed=True)
    work.send(500, 0.0, is_streamed=True)

    work.begin(second, 1.0)

    assert (work.reading, work.unread, work.writing) == (1, 500, 2)


def test_answer_in_one_piece_counts_as_read_when_it_should_be() -> None:
    work = a_workload()
    work.send(1000, 0.0, is_streamed=False)
    assert work.reading == 1

    assert work.seconds_ahead(5.0) == 0.0
    assert (work.reading, work.writing) == (0, 1)


def test_stream_that_is_late_is_still_ahead_of_nobody_for_less_than_no_time() -> None:
    work = a_workload()
    work.send(1000, 0.0, is_streamed=True)

    assert work.seconds_ahead(5.0) == 0.0
    assert work.reading == 1


@pytest.mark.parametrize("has_begun", [True, False])
def test_request_that_fails_leaves_nothing(has_begun: bool) -> None:
    work = a_workload()
    errand = work.send(1000, 0.0, is_streamed=True)
    if has_begun:
        work.begin(errand, 1.0)

    work.drop(errand)

    assert (work.reading, work.unread, work.writing) == (0, 0, 0)


def test_reading_speed_is_learned_from_first_tokens() -> None:
    work = PendingWork()
    for start in (0.0, 10.0, 20.0):
        errand = work.send(4000, start, is_streamed=True)
        work.begin(errand, start + 2.0)
        work.end(errand, start + 4.0)
        work.learn(errand, start + 4.0, 4000, 100)

    assert work.speeds.reads == pytest.approx(2000, rel=0.05)


def test_what_the_engine_had_was_not_read() -> None:
    work = PendingWork()
    for start in (0.0, 10.0, 20.0):
        errand = work.send(4000, start, is_streamed=True)
        work.begin(errand, start + 2.0)
        work.end(errand, start + 4.0)
        work.learn(errand, start + 4.0, 1000, 100)

    assert work.speeds.reads == pytest.approx(500, rel=0.05)


@pytest.mark.parametrize("is_streamed", [True, False])
def test_how_long_an_answer_was_written_the_engine_knows_better_than_its_slow_client(is_streamed: bool) -> None:
    work = PendingWork()
    for start in (0.0, 100.0, 200.0):
        errand = work.send(4000, start, is_streamed=is_streamed)
        work.begin(errand, start + 2.0)
        work.end(errand, start + 60.0)
        work.learn(errand, start + 60.0, 4000, 101, written_ms=1000.0)

    assert work.speeds.seconds_a_token(1) == pytest.approx(0.01)


def test_answer_in_one_piece_tells_nothing_of_writing_unless_the_engine_does() -> None:
    work = PendingWork()
    before = work.speeds.seconds_a_token(1)
    for start in (0.0, 100.0, 200.0):
        errand = work.send(4000, start, is_streamed=False)
        work.end(errand, start + 60.0)
        work.learn(errand, start + 60.0, 4000, 101)

    assert work.speeds.seconds_a_token(1) == before


def test_memory_fills_up_with_the_load_between_two_polls() -> None:
    work = PendingWork()
    work.take_over_memory(0.5, 10)

    assert work.fill_with(12) == pytest.approx(0.6)


def test_slow_machine_has_longer_steps_for_its_own_answers_are_few() -> None:
    works = [a_workload(), a_workload(), a_workload(reads=250.0)]
    for work in works[:2]:
        for streams in (1, 10, 20):
            work.speeds.note_writing(100, 100 * (0.01 + 0.001 * streams), streams)

    compare(works)

    assert works[2].step_seconds == pytest.approx(4 * works[0].step_seconds)
    assert works[2].stream_seconds == pytest.approx(4 * works[0].stream_seconds)
    assert works[0].stream_seconds == pytest.approx(0.001)


def answered(work: PendingWork, seconds: float) -> None:
    errand = work.send(10, 0.0, is_streamed=True)
    work.begin(errand, 1.0)
    work.end(errand, 1.0 + seconds)


def test_answers_take_as_long_as_the_first_of_them_did() -> None:
    work, other = PendingWork(), PendingWork()
    answered(work, 0.2)
    assert work.answer_seconds == pytest.approx(0.2)
    answered(work, 0.4)
    assert work.answer_seconds == pytest.approx(0.3)

    compare([work, other])

    assert other.answer_seconds == pytest.approx(0.3)


def test_one_long_answer_changes_little_after_many() -> None:
    work = PendingWork()
    for _ in range(100):
        answered(work, 0.2)
    answered(work, 10.0)

    assert work.answer_seconds < 0.6


def test_an_answer_is_no_longer_than_its_bound_allows() -> None:
    work = PendingWork()
    answered(work, 4.0)

    assert work.seconds_of_answer(10) == pytest.approx(10 * work.step_seconds)
    assert work.seconds_of_answer(100_000) == pytest.approx(4.0)


def test_of_replies_that_come_all_at_once_one_is_read() -> None:
    work = a_workload()

    assert [work.wants_facts(100 + after) for after in (0, 0.001, 0.004, 0.006, 0.01, 0.012)] == [
        True, False, False, True, False, True,
    ]  # fmt: skip
