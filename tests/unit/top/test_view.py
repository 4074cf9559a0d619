from __future__ import annotations

from typing import Any

import pytest

from inference_engine_proxy_server.top.plain import as_text
from inference_engine_proxy_server.top.view import (
    BACKEND_COLUMNS,
    EVENT_COLUMNS,
    REQUEST_COLUMNS,
    backend_rows,
    event_rows,
    header_lines,
    printable,
    request_rows,
    sparkline,
)


def backend(name: str, state: str = "ready", **fields: Any) -> dict[str, Any]:
    usual = dict.fromkeys(
        ("waiting", "limit", "tokens_in_per_second", "tokens_out_per_second", "ttft_p50", "ttft_p95"), None
    )
    rates = {"requests_per_second": 1.5, "errors_per_minute": 0, "in_flight": 0, "models": ["m"], "reason": ""}
    return {"name": name, "shown_state": state, **usual, **rates, **fields}


def request(name: str, phase: str, age: float, **fields: Any) -> dict[str, Any]:
    unknown = dict.fromkeys(
        ("model", "alias", "key", "backend", "tokens", "tokens_per_second", "position", "expected_wait", "why"), None
    )
    return {"id": name, "phase": phase, "age": age, **unknown, **fields}


def event(number: int, text: str, **fields: Any) -> dict[str, Any]:
    return {"id": number, "at": 1000.0 + number, "kind": "state", "severity": "info", "count": 1, "text": text} | fields


def snapshot(**parts: Any) -> dict[str, Any]:
    fleet = {
        "status": "degraded", "available": 1, "total": 2, "slots": 8, "in_flight": 3, "queue": 2, "queue_limit": 512,
        "requests_per_second": 3.25, "errors_per_second": 0.0, "tokens_in_per_second": 1234.5,
        "tokens_out_per_second": 210.0, "ttft_p50": 0.12, "ttft_p95": 1.8,
    }  # fmt: skip
    return {
        "version": "1.0", "audience": "operator", "policy": "least_requests", "fleet": fleet,
        "workers": {"count": 1, "silent": []}, "queue": {"by_key": [], "expected_wait": None},
        "backends": [], "requests": {"total": 0, "shown": []}, "events": [],
    } | parts  # fmt: skip


def names(rows: list[Any]) -> list[str]:
    return [row.key for row in rows]


def test_backends_with_problems_come_first() -> None:
    states = ["ready", "busy", "draining", "starting", "frozen", "suspect", "down"]
    shown = snapshot(backends=[backend(state, state) for state in states])

    assert names(backend_rows(shown)) == states[::-1]


def test_of_equal_states_errors_and_then_names_decide() -> None:
    shown = snapshot(backends=[backend("b"), backend("a"), backend("c", errors_per_minute=4)])

    assert names(backend_rows(shown)) == ["c", "a", "b"]


def test_other_orders() -> None:
    shown = snapshot(backends=[backend("b", "down"), backend("a", in_flight=1), backend("c", in_flight=5)])

    assert names(backend_rows(shown, "name")) == ["a", "b", "c"]
    assert names(backend_rows(shown, "load")) == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("text", "found"), [("GPU", ["gpu"]), ("down", ["cpu"]), ("qwen", ["cpu"]), ("", ["cpu", "gpu"])]
)
def test_filter_finds_names_states_and_models(text: str, found: list[str]) -> None:
    shown = snapshot(backends=[backend("gpu"), backend("cpu", "down", models=["qwen"])])

    assert names(backend_rows(shown, text=text)) == found


def test_waiting_requests_come_first_and_then_long_ones() -> None:
    requests = [
        request("a", "decode", 9),
        request("b", "queued", 1),
        request("c", "decode", 20),
        request("d", "queued", 3),
    ]
    shown = snapshot(requests={"total": 4, "shown": requests})

    assert names(request_rows(shown)) == ["d", "b", "c", "a"]
    assert names(request_rows(shown, "decode")) == ["c", "a"]


def test_latest_events_come_first_with_their_counts() -> None:
    shown = snapshot(events=[event(1, "Old."), event(2, "New.", count=3, severity="error")])

    rows = event_rows(shown)

    assert [(row.cells[1], row.cells[3], row.level) for row in rows] == [("3x", "New.", "error"), ("", "Old.", "")]


def test_rows_have_a_cell_for_each_column() -> None:
    shown = snapshot(
        backends=[backend("a")], events=[event(1, "x")], requests={"total": 1, "shown": [request("r", "queued", 1)]}
    )

    assert len(backend_rows(shown)[0].cells) == len(BACKEND_COLUMNS)
    assert len(request_rows(shown)[0].cells) == len(REQUEST_COLUMNS)
    assert len(event_rows(shown)[0].cells) == len(EVENT_COLUMNS)


def test_header_tells_totals_silent_workers_and_who_waits() -> None:
    queue = {"by_key": [{"key": "team-a", "requests": 2}, {"key": None, "requests": 1}], "expected_wait": 90.0}

    text = "\n".join(header_lines(snapshot(workers={"count": 3, "silent": [2]}, queue=queue)))

    assert "DEGRADED  1 of 2 backends" in text
    assert "workers 3, silent: 2" in text
    assert "in flight 3 of 8  queue 2 of 512  requests/s 3.25" in text
    assert "in 1,234 out 210  ttft p50 120 ms p95 1.8 s" in text
    assert "waiting: team-a 2, no key 1; expected wait 90.0 s" in text


def test_public_snapshot_says_what_is_missing() -> None:
    assert "Without ADMIN_KEY" in header_lines(snapshot(audience="public"))[-1]


def test_nothing_that_is_shown_controls_the_terminal() -> None:
    evil = "\x1b]0;title\x07\x9b2J\r\n"
    shown = snapshot(
        backends=[backend(f"a{evil}", reason=evil, models=[evil])],
        requests={"total": 1, "shown": [request(f"r{evil}", "queued", 1, model=evil, why=evil)]},
        events=[event(1, evil)],
        policy=evil,
    )

    assert as_text(shown).replace("\n", "").isprintable()
    assert printable("é 模型") == "é 模型"


def test_sparkline_shows_the_latest_numbers() -> None:
    assert sparkline([9, None, 0, 4, 8], 4) == " ▁▅█"
    assert sparkline([0, 0], 4) == "▁▁"
    assert sparkline([], 4) == ""


def test_text_has_all_tables_and_no_empty_ones() -> None:
    text = as_text(snapshot(backends=[backend("a", "down", reason="it cannot be reached")]))

    assert "BACKEND" in text
    assert "it cannot be reached" in text
    assert "PHASE" not in text
