from __future__ import annotations

from typing import Any

from inference_engine_proxy_server.dashboard.traffic import STEPS, Progress, Traffic, merged_steps
from inference_engine_proxy_server.dashboard.usage_totals import UsageTotals
from inference_engine_proxy_server.telemetry.finished_requests import FinishedRequests
from inference_engine_proxy_server.telemetry.request_record import RequestRecord
from inference_engine_proxy_server.wire.outcome import Outcome
from support.records import request_record

A, B = "http://a", "http://b"


class Clocked:
    """A traffic whose clock the test sets; it starts at the beginning of a step."""

    def __init__(self) -> None:
        self.now = 5000.0
        self.noted: list[RequestRecord] = []
        self.usage = UsageTotals()
        self.finished = FinishedRequests()
        self.traffic = Traffic(
            self.finished, lambda record: record.path == "/health", self.noted.append, self.usage, lambda: self.now
        )

    def end(self, backend: str | None = A, **fields: Any) -> None:
        self.finished.add(request_record(backend=backend, path="/v1/completions", **fields))

    def after(self, seconds: float, queue: int = 0) -> None:
        self.now += seconds
        self.traffic.end_step(queue)


def test_sums_are_kept_by_backend() -> None:
    clocked = Clocked()
    clocked.end(A, prompt_tokens=10, output_tokens=3)
    clocked.end(A, status=500)
    clocked.end(B, outcome=Outcome.BROKEN)
    clocked.end(None, status=429, termination="queue_full")
    clocked.end(None, status=404, termination="model_not_found")
    clocked.traffic.read()
    clocked.now += 2

    window = clocked.traffic.window(5)

    assert window.seconds == 2
    total = window.total
    assert (total.requests, total.errors, total.tokens_in, total.tokens_out) == (5, 3, 10, 3)
    assert {url: (one.requests, one.errors) for url, one in window.by_backend.items()} == {A: (2, 1), B: (1, 1)}


def test_requests_for_own_paths_do_not_count() -> None:
    clocked = Clocked()
    clocked.finished.add(request_record(path="/health", backend=None))
    clocked.end()
    clocked.traffic.read()

    assert clocked.traffic.window(0).total.requests == 1


def test_unusual_ends_are_noted() -> None:
    clocked = Clocked()
    clocked.end()
    clocked.end(None, status=429, termination="queue_full")
    clocked.traffic.read()

    assert [record.termination for record in clocked.noted] == ["queue_full"]


def test_names_that_clients_make_up_take_no_more_memory() -> None:
    clocked = Clocked()
    for number in range(3000):
        clocked.end(model=f"m-{number}")
    clocked.traffic.read()

    assert clocked.traffic.window(0).total.requests == 3000
    assert len(clocked.usage.by_model) == 1001


def test_error_replies_have_no_latency() -> None:
    clocked = Clocked()
    clocked.end(status=200, first_byte_seconds=1.0)
    clocked.end(status=503, first_byte_seconds=9.0)
    clocked.end(status=200, first_byte_seconds=None)
    clocked.traffic.read()

    assert sum(clocked.traffic.window(0).total.latencies.values()) == 1


def test_window_ends_after_its_steps() -> None:
    clocked = Clocked()
    clocked.end(A)
    clocked.after(10)
    clocked.end(B)
    clocked.after(10)
    clocked.now += 5

    assert (clocked.traffic.window(1).total.requests, clocked.traffic.window(1).seconds) == (1, 15)
    assert clocked.traffic.window(2).by_backend.keys() == {A, B}
    assert clocked.traffic.window(5).total.requests == 2


def test_step_is_completed_once_its_time_is_over() -> None:
    clocked = Clocked()
    clocked.end()
    clocked.now += 9
    assert not clocked.traffic.end_step(4)
    clocked.now += 1
    assert clocked.traffic.end_step(4)
    assert not clocked.traffic.end_step(4)

    [step] = clocked.traffic.steps

    assert (step.number, step.sums.requests, step.queue) == (500, 1, 4)


def test_history_has_an_hour() -> None:
    clocked = Clocked()
    for _ in range(STEPS + 5):
        clocked.after(10)

    assert len(clocked.traffic.steps) == STEPS


def test_tokens_of_a_stream_count_while_it_runs_and_not_again_at_its_end() -> None:
    clocked = Clocked()
    clocked.traffic.credit([Progress("id", A, 30)])
    clocked.after(10)
    clocked.traffic.credit([Progress("id", A, 50), Progress("other", B, 4)])
    clocked.end(A, request_id="id", output_tokens=60)
    clocked.end(B, request_id="other", output_tokens=None)
    clocked.end(B, request_id="third", output_tokens=7)
    clocked.after(10)

    assert [step.sums.tokens_out for step in clocked.traffic.steps] == [30, 20 + 4 + 10 + 7]
    by_backend = clocked.traffic.window(2).by_backend
    assert (by_backend[A].tokens_out, by_backend[B].tokens_out) == (60, 11)


def test_estimate_above_the_report_is_not_taken_back() -> None:
    clocked = Clocked()
    clocked.traffic.credit([Progress("id", A, 30)])
    clocked.end(A, request_id="id", output_tokens=20)
    clocked.traffic.read()

    assert clocked.traffic.window(0).total.tokens_out == 30


def test_steps_of_two_workers_add_up_and_their_common_queue_does_not() -> None:
    one, other = Clocked(), Clocked()
    for clocked, count in ((one, 2), (other, 3)):
        for _ in range(count):
            clocked.end()
        clocked.after(10, queue=7)
    other.after(10)

    merged = merged_steps([one.traffic.steps, other.traffic.steps])

    assert {number: (step.sums.requests, step.queue) for number, step in merged.items()} == {500: (5, 7), 501: (0, 0)}
