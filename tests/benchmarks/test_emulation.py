"""Traces keep their character on other fleets, clients follow them over HTTP, and figures follow from answers."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest

from benchmarks.emulated import emulated
from completions.answers import Answer, AnswerReader, Failed, answer_in
from emulation.calibration import Measurements, speeds_of
from emulation.cases import cases_of
from emulation.comparison import EMULATED, REAL, comparison, is_within_goals
from emulation.counters import PromptTokens, prompt_tokens
from emulation.engine import Intake
from emulation.fleet import running_fleet
from emulation.host import HostReport
from emulation.measurement import Measured, figures_of, measured
from emulation.options import numbers, traces_named
from emulation.player import Play, Played, Served, play
from emulation.report import picture, tables
from emulation.targets import DEFAULT_TARGETS, proxy_named
from proxies.commands import OURS
from proxies.proxy import Site
from simulation.batching import Speeds
from simulation.catalogue import TRACES
from simulation.engine_spec import EngineSpec
from simulation.requests import Segment
from simulation.trace import Absence, Session, Trace, Turn
from simulation.virtual_loop import virtual_loop
from simulation.vllm_engine import VllmSize
from suite.results import Failure, Results
from support.fakes.engine import EngineConnection, FakeEngine, http_reply
from support.ports import free_port

DOCUMENT = Path(__file__).parents[2] / "docs" / "balancing-figures.md"


def sessions_of(trace: Trace) -> list[Session]:
    return trace.sessions(Random(1), trace.seconds)


@pytest.mark.parametrize("name", TRACES)
@pytest.mark.parametrize("size", [2, 32])
def test_sessions_arrive_in_proportion_to_the_size_of_the_fleet(name: str, size: int) -> None:
    trace = TRACES[name].shortened(min(1.0, 60 / TRACES[name].seconds))
    resized = trace.resized(size)

    expected = len(sessions_of(trace)) * size / trace.backends
    assert len(sessions_of(resized)) == pytest.approx(expected, rel=0.5, abs=12)
    assert max(session.start for session in sessions_of(resized)) < trace.seconds
    assert resized.backends == size
    assert len(resized.slowness) == len(trace.slowness)
    assert all(backend < size for backend in resized.slowness)


def test_a_shortened_trace_keeps_its_rate() -> None:
    trace = TRACES["chat-16-vllm"]

    half = trace.shortened(0.5)

    assert (half.seconds, half.warm_up) == (trace.seconds / 2, trace.warm_up / 2)
    assert len(sessions_of(half)) == pytest.approx(len(sessions_of(trace)) / 2, rel=0.1)


def test_an_absent_backend_of_a_smaller_fleet_is_away_for_the_same_part_of_the_time() -> None:
    trace = replace(TRACES["chat-16-vllm"], absence=Absence(13, 80.0, 100.0))

    absence = trace.resized(4).shortened(0.5).absence

    assert absence == Absence(3, 40.0, 50.0)


def test_a_case_is_named_after_its_trace_and_fleet() -> None:
    cases = cases_of([TRACES["chat-16-vllm"]], [2, 8], 30.0)

    assert list(cases) == ["chat-16-vllm on 2", "chat-16-vllm on 8"]
    case = cases["chat-16-vllm on 8"]
    assert len(case.engines) == 8
    assert case.trace.seconds == 30.0
    assert case.sessions(1) == case.sessions(1) != case.sessions(2)


def test_a_short_trace_is_not_made_longer() -> None:
    trace = TRACES["chat-16-vllm"]

    assert cases_of([trace], [2], 10_000.0)["chat-16-vllm on 2"].trace.seconds == trace.seconds


def turn(text: int, answer: int = 12, pause: float = 0.0) -> Turn:
    return Turn(pause, (Segment(text, 40),), Segment(text + 1000, answer))


def session(start: float, *turns: Turn, **fields: Any) -> Session:
    return Session(start, turns, "someone", **fields)


async def test_each_turn_contains_the_answers_before_it() -> None:
    whole = session(0.0, turn(1), turn(2), turn(3), is_streamed=False)
    async with emulated("llama.cpp") as engine:
        played = await play(Play(engine.port, "m", 60.0, 100), [whole, session(0.0, turn(5))])

    streamed = [one for one in played.served if one.first_seconds is not None]
    followed = [one.answer for one in played.served if one.first_seconds is None]
    assert (len(streamed), len(followed), played.unanswered) == (1, 3, 0)
    lengths = [answer.prompt_tokens for answer in followed]
    assert [after - before for before, after in pairwise(lengths)] == [12 + 40 + 10] * 2
    assert [answer.cached_tokens for answer in followed][1:] == [length + 12 for length in lengths[:-1]]
    assert {answer.answer_tokens for answer in followed} == {12}


async def test_no_request_begins_after_the_trace_or_beyond_its_number() -> None:
    late = session(0.0, turn(1), turn(2, pause=0.5))
    async with emulated("vllm") as engine:
        in_time = await play(Play(engine.port, "m", 0.3, 100), [late])
        few = await play(Play(engine.port, "m", 60.0, 2), [session(0.0, turn(number)) for number in range(5)])

    assert len(in_time.served) == 1
    assert len(few.served) == 2


@asynccontextmanager
async def failing(reply: bytes) -> AsyncIterator[FakeEngine]:
    async def serve(connection: EngineConnection) -> None:
        await connection.request()
        connection.send(reply)

    async with FakeEngine(serve) as engine:
        yield engine


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (http_reply(b"{}", 503), "503"),
        (http_reply(b"{}"), "without text or usage"),
        (http_reply(b"not JSON"), "DecodeError"),
    ],
)
async def test_failed_requests_are_tried_again_and_counted(reply: bytes, kind: str) -> None:
    broken = session(0.0, turn(1), turn(2), is_streamed=False)
    async with failing(reply) as engine:
        played = await play(Play(engine.port, "m", 60.0, 100), [broken])

    assert not played.served
    assert played.failed_attempts == Counter({kind: 3})
    assert played.unanswered == 1


async def test_a_refused_connection_is_a_failure() -> None:
    played = await play(Play(free_port(), "m", 60.0, 100), [session(0.0, turn(1))])

    assert played.failed_attempts == Counter({"ConnectionRefusedError": 3})


def test_a_stream_without_its_end_or_usage_is_a_failure() -> None:
    text = b'data: {"choices":[{"delta":{"content":"bal"}}]}'
    usage = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}'
    for lines, problem in (([text, usage], "broken off"), ([text, b"data: [DONE]"], "without text or usage")):
        reader = AnswerReader()
        for line in lines:
            reader.read(line, 1.0)
        with pytest.raises(Failed, match=problem):
            reader.answer()
    with pytest.raises(Failed, match="error event"):
        AnswerReader().read(b'data: {"error":{"message":"gone"}}', 1.0)


def test_an_answer_has_its_text_time_and_usage() -> None:
    reader = AnswerReader()
    for at, line in enumerate(
        (
            b'data: {"choices":[{"delta":{"role":"assistant","content":null}}]}',
            b'data: {"choices":[{"delta":{"content":" bal"}}]}',
            b'data: {"choices":[{"delta":{"content":" ber"}}]}',
            b'data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2,"prompt_tokens_details":null}}',
            b"data: [DONE]",
        )
    ):
        reader.read(line, float(at))

    assert reader.answer() == Answer(" bal ber", 1.0, 9, 0, 2)
    whole = {"choices": [{"message": {"content": "x"}}], "usage": {"prompt_tokens": 9, "completion_tokens": 1}}
    assert answer_in(json.dumps(whole).encode(), 5.0) == Answer("x", 5.0, 9, 0, 1)


def served(began_at: float, first_seconds: float | None) -> Served:
    return Served(began_at, first_seconds, 2.0, Answer("x", 0.0, 100, 50, 1))


def run(*first: float | None) -> Measured:
    played = Played([served(5.0 + at, each) for at, each in enumerate(first)], Counter({"503": 2}), 1, 30.0)
    return Measured(played, [PromptTokens(300, 100), PromptTokens(100, 300)], [PromptTokens(50, 150)] * 2, 1.5)


def test_figures_count_what_came_after_the_warm_up() -> None:
    figures = figures_of(run(9.0, 0.1, 0.2, None, 0.3), warm_up=5.5)

    assert (figures["first_p50"], figures["first_p99"]) == (0.2, 0.3)
    assert figures["hit_rate"] == 0.75
    assert figures["read_tokens"] == 400
    assert (figures["failed_attempts"], figures["unanswered"], figures["requests"]) == (2, 1, 5)
    assert figures["proxy_cpu_ms"] == 300.0
    assert figures["busiest_share"] == 1.0


def test_a_run_without_a_stream_after_the_warm_up_has_no_figures() -> None:
    with pytest.raises(RuntimeError, match="first 50 s"):
        figures_of(run(0.1), warm_up=50.0)


def test_a_delay_is_rounded_up() -> None:
    assert HostReport(1.0, {0: 98, 3: 1, 7: 1}).late_ms(0.99) == 4.0


def about(**fields: Any) -> dict[str, Any]:
    return {
        "date": "2026-11-29", "commit": "abc", "cores": 2, "processor": "some", "seconds": 60.0,
        "versions": {"nginx": "1.22.1"}, **fields,
    }  # fmt: skip


def results(late_ms: float = 2.0) -> Results:
    found = Results(about(), 2)
    for place, target in enumerate(("inference-proxy/expected_time", "nginx")):
        for seed in range(2):
            report = figures_of(run(0.1 * (place + 1), 0.2), 0.0) | {"engines_cpu_share": 0.1, "late_p99_ms": late_ms}
            found.add(seed, "chat-16-vllm on 2", target, report)
    return found


def test_a_table_has_a_row_for_each_proxy_and_names_all_failures() -> None:
    found = results()
    found.failures.append(Failure(0, "chat-16-vllm on 2", "smg", "did not start"))

    lines = tables(found, TRACES).splitlines()

    assert lines[0].startswith(f"**chat-16-vllm on 2 engines**: {TRACES['chat-16-vllm'].about}.")
    assert sum(line.startswith(("| inference-proxy/", "| nginx ")) for line in lines) == 2
    assert any("75.0%" in line for line in lines)
    assert "Failed attempts: inference-proxy/expected_time: 503; nginx: 503." in lines
    assert "* round 1, chat-16-vllm on 2, smg: did not start" in lines


@pytest.mark.parametrize(("late_ms", "is_too_busy"), [(2.0, False), (9.0, True)])
def test_a_busy_machine_is_reported(late_ms: float, is_too_busy: bool) -> None:
    assert ("too busy" in tables(results(late_ms), TRACES)) == is_too_busy


def test_the_picture_has_a_dot_for_each_proxy_of_a_case() -> None:
    drawn = picture(results())

    assert drawn.count("<title>") == 2
    assert "chat-16-vllm on 2" in drawn
    assert not picture(Results(about(), 1))


def compared(hit_rate: float, p90: float) -> Results:
    found = Results(about(), 1)
    real = {"hit_rate": 0.5, "first_p50": 0.1, "first_p90": 1.0, "first_p99": 2.0}
    found.add(0, f"chat{REAL}", "nginx", real)
    found.add(0, f"chat{EMULATED}", "nginx", real | {"hit_rate": hit_rate, "first_p90": p90, "first_p99": 9.0})
    return found


@pytest.mark.parametrize(
    ("hit_rate", "p90", "is_within"), [(0.509, 1.09, True), (0.495, 0.92, True), (0.52, 1.0, False), (0.5, 1.2, False)]
)
def test_differences_are_compared_with_their_goals(hit_rate: float, p90: float, is_within: bool) -> None:
    found = compared(hit_rate, p90)

    assert is_within_goals(found) == is_within
    assert ("**missed**" in comparison(found)) != is_within
    assert len([line for line in comparison(found).splitlines() if line.startswith("| chat ")]) == 4


def test_a_comparison_without_figures_is_not_within_the_goals() -> None:
    assert not is_within_goals(Results(about(), 1))


def test_measured_speeds_are_those_of_the_engine() -> None:
    """Measures an engine on the virtual clock, whose speeds are known."""
    own = Speeds(0.001, 4e-4, 0.0015, 1e-6, 2048, 9e-7)
    intake = Intake(0.002, 3e-6)

    def first(tokens: int, cached: int = 0) -> float:
        unread = tokens - cached
        attended = unread * (cached + unread / 2)
        step = own.fixed + own.per_prompt_token * unread + own.per_context_token * tokens
        return intake.seconds(tokens) + step + own.per_attended_token * attended

    def write(context: int, sequences: int = 1) -> float:
        return own.fixed + sequences * (own.per_sequence + own.per_context_token * context)

    read = {tokens: first(tokens) for tokens in (148, 404, 1044, 1920)}
    warm = first(36, 35), first(3020, 3019)
    found, its_intake = speeds_of(Measurements(read, *warm, write(36), write(3020), write(36, 4), 36, 3020))

    for name in ("fixed", "per_prompt_token", "per_sequence", "per_context_token", "per_attended_token"):
        assert getattr(found, name) == pytest.approx(getattr(own, name), rel=0.05), name
    assert its_intake.seconds(1000) == pytest.approx(intake.seconds(1000), rel=0.1)


def test_a_spec_builds_the_engine_of_its_kind() -> None:
    built = EngineSpec(Speeds(0.01, 0, 0, 0, 100), vllm=VllmSize(blocks=50)).engine(virtual_loop())

    assert built.state().memory_tokens == 50 * 16


@pytest.mark.parametrize("text", ["", "1,", "0", "-1", "two", "1.5"])
def test_a_number_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="--seeds takes positive numbers"):
        numbers("--seeds", text)


def test_names_select_traces_and_unknown_ones_are_refused() -> None:
    assert [trace.name for trace in traces_named("rag-16-vllm,chat-16-vllm")] == ["rag-16-vllm", "chat-16-vllm"]
    with pytest.raises(ValueError, match="unknown trace nothing: known are"):
        traces_named("rag-16-vllm,nothing")


def test_the_proxy_of_this_project_rejects_no_request_and_fixed_is_no_proxy(tmp_path: Path) -> None:
    target = proxy_named("inference-proxy/expected_time")

    assert target is not None
    settings = target.own_proxy.settings(Site(tmp_path, 1, (2,)))
    assert settings["BALANCING_POLICY"] == "expected_time"
    assert settings["QUEUE_TIMEOUT_SECONDS"] == "3600"
    assert "fixed" not in DEFAULT_TARGETS
    with pytest.raises(ValueError, match="no proxy"):
        proxy_named("fixed")


async def test_a_server_without_an_engines_counters_is_an_error() -> None:
    async with failing(http_reply(b"other_total 3\n")) as server:
        with pytest.raises(ValueError, match="counts no prompt tokens"):
            await asyncio.to_thread(prompt_tokens, [server.port])


def test_a_run_through_the_proxy_has_figures(tmp_path: Path) -> None:
    trace = replace(TRACES["chat-16-vllm"], warm_up=0.0, absence=None)
    sessions = [session(number / 10, turn(1), turn(2 + number)) for number in range(6)]
    with running_fleet([EngineSpec(Speeds(0.01, 1e-5, 0, 0, 2048), vllm=VllmSize())] * 2, "m") as fleet:
        found = measured(OURS, fleet, trace, sessions, Play(0, "m", 60.0, 100))
    figures = figures_of(found, 0.0)

    assert (figures["requests"], figures["failed_attempts"], figures["unanswered"]) == (12, 0, 0)
    assert 0.3 < figures["hit_rate"] < 1
    assert figures["proxy_cpu_seconds"] >= 0
    assert sum(engine.read + engine.cached for engine in found.tokens) == sum(
        one.answer.prompt_tokens for one in found.played.served
    )


def test_the_document_has_markers_for_the_tables_of_emulated_engines() -> None:
    page = DOCUMENT.read_text()

    assert page.count("<!-- emulated engines: begin -->\n") == page.count("<!-- emulated engines: end -->") == 1
