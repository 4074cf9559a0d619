"""Pending work follows from the requests sent to a backend and the first tokens of its answers."""

from __future__ import annotations

import json
import math

import pytest

from inference_engine_proxy_server.requests.prompt import ENDS, Prompt, read_prompt
from inference_engine_proxy_server.requests.token_sizes import TokenSizes
from inference_engine_proxy_server.routing.expected_time.pending_work import PendingWork, compare


def a_workload(reads: float = 1000.0) -> PendingWork:
    work = PendingWork()
    for _ in range(5):
        work.note_reading(1000, 1000 / reads, 0.0)
    compare([work], 0.0)
    return work


def test_seconds_ahead_is_the_reading_time_of_all_prompts_minus_elapsed_time() -> None:
    work = a_workload()
    work.send(2000, 10.0, is_streamed=True)
    work.send(1000, 10.5, is_streamed=True)

    assert work.seconds_ahead(11.0) == pytest.approx(2.0)


def test_a_first_token_shows_that_all_earlier_prompts_have_been_read() -> None:
    work = a_workload()
    work.send(2000, 0.0, is_streamed=False)
    second = work.send(1000, 0.0, is_streamed=True)
    work.send(500, 0.0, is_streamed=True)

    work.begin(second, 1.0)

    assert (work.reading, work.unread, work.writing) == (1, 500, 2)


def test_a_prompt_whose_answer_is_not_streamed_counts_as_read_when_due() -> None:
    work = a_workload()
    work.send(1000, 0.0, is_streamed=False)
    assert work.reading == 1

    assert work.seconds_ahead(5.0) == 0.0
    assert (work.reading, work.writing) == (0, 1)


def test_seconds_ahead_is_not_negative_if_a_streamed_answer_is_overdue() -> None:
    work = a_workload()
    work.send(1000, 0.0, is_streamed=True)

    assert work.seconds_ahead(5.0) == 0.0
    assert work.reading == 1


@pytest.mark.parametrize("has_begun", [True, False])
def test_a_dropped_request_leaves_no_pending_work(has_begun: bool) -> None:
    work = a_workload()
    request = work.send(1000, 0.0, is_streamed=True)
    if has_begun:
        work.begin(request, 1.0)

    work.drop(request)

    assert (work.reading, work.unread, work.writing) == (0, 0, 0)


def test_reading_speed_is_learned_from_first_tokens() -> None:
    work = PendingWork()
    for start in (0.0, 10.0, 20.0):
        request = work.send(4000, start, is_streamed=True)
        work.begin(request, start + 2.0)
        work.end(request, start + 4.0)
        work.learn(request, start + 4.0, 4000, 100)

    assert work.speeds.reads == pytest.approx(2000, rel=0.05)


def test_cached_tokens_do_not_count_as_read() -> None:
    work = PendingWork()
    for start in (0.0, 10.0, 20.0):
        request = work.send(4000, start, is_streamed=True)
        work.begin(request, start + 2.0)
        work.end(request, start + 4.0)
        work.learn(request, start + 4.0, 1000, 100)

    assert work.speeds.reads == pytest.approx(500, rel=0.05)


@pytest.mark.parametrize("is_streamed", [True, False])
def test_writing_time_reported_by_the_engine_is_preferred_to_the_measured_one(is_streamed: bool) -> None:
    work = PendingWork()
    for start in (0.0, 100.0, 200.0):
        request = work.send(4000, start, is_streamed=is_streamed)
        work.begin(request, start + 2.0)
        work.end(request, start + 60.0)
        work.learn(request, start + 60.0, 4000, 101, written_ms=1000.0)

    assert work.speeds.seconds_a_token(1) == pytest.approx(0.01)


def test_an_answer_that_is_not_streamed_teaches_no_writing_speed_without_an_engine_report() -> None:
    work = PendingWork()
    before = work.speeds.seconds_a_token(1)
    for start in (0.0, 100.0, 200.0):
        request = work.send(4000, start, is_streamed=False)
        work.end(request, start + 60.0)
        work.learn(request, start + 60.0, 4000, 101)

    assert work.speeds.seconds_a_token(1) == before


def test_expected_memory_use_grows_with_the_load_between_two_polls() -> None:
    work = PendingWork()
    work.take_over_memory(0.5, 10)

    assert work.fill_with(12) == pytest.approx(0.6)


def test_a_slow_reader_without_writing_measurements_gets_proportionally_slower_writing() -> None:
    works = [a_workload(), a_workload(), a_workload(reads=250.0)]
    for work in works[:2]:
        for streams in (1, 10, 20):
            work.speeds.note_writing(100, 100 * (0.01 + 0.001 * streams), streams)

    compare(works, 0.0)

    assert works[2].step_seconds == pytest.approx(4 * works[0].step_seconds)
    assert works[2].stream_seconds == pytest.approx(4 * works[0].stream_seconds)
    assert works[0].stream_seconds == pytest.approx(0.001)


def test_a_slow_writer_without_reading_measurements_counts_as_a_slow_reader() -> None:
    works = [PendingWork() for _ in range(3)]
    for work, slowness in zip(works, (1, 1, 3), strict=True):
        for streams in (1, 10, 20):
            work.speeds.note_writing(100, slowness * 100 * (0.01 + 0.001 * streams), streams)

    compare(works, 0.0)

    assert works[2].reads == pytest.approx(works[0].reads / 3)
    assert works[2].step_seconds == pytest.approx(3 * works[0].step_seconds)


def test_a_prompt_that_was_not_read_alone_teaches_no_reading_speed() -> None:
    work = a_workload()
    for start in range(0, 800, 100):
        work.send(10_000, start, is_streamed=False)
        assert work.seconds_ahead(start + 10.5) == 0  # it is due, but is still being read
        request = work.send(1000, start + 10.5, is_streamed=True)
        work.begin(request, start + 31.0)
        work.end(request, start + 32.0)
        work.learn(request, start + 32.0, 1000, 10)

    assert work.speeds.reads == pytest.approx(1000)


def test_a_short_prompt_behind_a_decoding_step_teaches_no_reading_speed() -> None:
    work = a_workload()
    for streams in (1, 2, 3):
        work.speeds.note_writing(100, 100 * 0.1, streams)
    for start in range(20):
        request = work.send(50, float(start), is_streamed=True)
        work.begin(request, start + 0.15)
        work.end(request, start + 0.15)
        work.learn(request, start + 0.15, 50, 1)

    assert work.speeds.reads == pytest.approx(1000)


def test_until_the_reading_speed_is_measured_a_burst_shows_a_lower_bound() -> None:
    busy, idle = PendingWork(), PendingWork()
    burst = [busy.send(10_000, 0.0, is_streamed=True) for _ in range(3)]
    for number, request in enumerate(burst):
        busy.begin(request, number + 1.0)

    compare([busy, idle], 3.0)

    assert busy.reads == idle.reads == pytest.approx(10_000)


def test_a_lower_bound_from_prompts_that_were_cached_after_all_is_forgotten() -> None:
    work = PendingWork()
    request = work.send(50_000, 0.0, is_streamed=True)
    work.begin(request, 0.1)
    assert work.speeds.least_reads == pytest.approx(500_000)
    work.end(request, 1.0)

    work.learn(request, 1.0, 20, 10)

    assert work.speeds.least_reads == 0


def test_a_backend_that_seemed_slow_counts_as_usual_after_a_while() -> None:
    works = [a_workload(), a_workload(), a_workload(reads=100.0)]
    compare(works, 59.0)
    assert works[2].reads == pytest.approx(100)

    compare(works, 61.0)

    assert works[2].reads == pytest.approx(1000)


def test_a_backend_whose_measurements_disagree_counts_as_usual() -> None:
    works = [a_workload(), a_workload(), PendingWork()]
    for rate in (300, 400, 500, 1000, 1200):
        works[2].note_reading(1000, 1000 / rate, 0.0)

    compare(works, 0.0)

    assert works[2].reads == pytest.approx(1000)


def answered(work: PendingWork, seconds: float) -> None:
    request = work.send(10, 0.0, is_streamed=True)
    work.begin(request, 1.0)
    work.end(request, 1.0 + seconds)


def test_expected_answer_duration_is_the_mean_of_the_first_answers() -> None:
    work, other = PendingWork(), PendingWork()
    answered(work, 0.2)
    assert work.answer_seconds == pytest.approx(0.2)
    answered(work, 0.4)
    assert work.answer_seconds == pytest.approx(0.3)

    compare([work, other], 0.0)

    assert other.answer_seconds == pytest.approx(0.3)


def test_one_long_answer_after_many_changes_the_expected_duration_little() -> None:
    work = PendingWork()
    for _ in range(100):
        answered(work, 0.2)
    answered(work, 10.0)

    assert work.answer_seconds < 0.6


def test_expected_answer_duration_is_capped_by_the_requests_token_limit() -> None:
    work = PendingWork()
    answered(work, 4.0)

    assert work.seconds_of_answer(10) == pytest.approx(10 * work.step_seconds)
    assert work.seconds_of_answer(100_000) == pytest.approx(4.0)


def test_only_one_of_several_simultaneous_replies_is_parsed() -> None:
    work = a_workload()

    assert [work.wants_facts(100 + after) for after in (0, 0.001, 0.004, 0.006, 0.01, 0.012)] == [
        True, False, False, True, False, True,
    ]  # fmt: skip


@pytest.mark.parametrize("is_dropped", [True, False])
def test_a_request_occupies_its_slot_until_it_ends(is_dropped: bool) -> None:
    work, prompt = a_workload(), a_prompt()
    held = ENDS[3]
    request = work.send(2000, 0.0, is_streamed=True, slot=work.contents.take(prompt.chain, 2))
    assert work.usable(prompt, held, 2, had_last_turn=False) == 0

    if is_dropped:
        work.drop(request)
    else:
        work.end(request, 5.0)

    assert work.usable(prompt, held, 2, had_last_turn=False) == held


def test_the_backend_of_the_last_turn_holds_its_answer_too() -> None:
    work, prompt = a_workload(), a_prompt()
    assert prompt.history > ENDS[3]

    assert work.usable(prompt, ENDS[3], math.inf, had_last_turn=True) == prompt.history
    assert work.usable(prompt, ENDS[3], math.inf, had_last_turn=False) == ENDS[3]
    assert work.usable(prompt, 0, math.inf, had_last_turn=True) == 0, "it was restarted since"


def a_prompt() -> Prompt:
    contents = ("s" * 2000, "q" * 500, "a" * 3000, "next")
    roles = ("system", "user", "assistant", "user")
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]
    return read_prompt(b"/", "/", b"", json.dumps({"messages": messages}).encode(), TokenSizes())
