"""What is shown of a snapshot: lines and rows of text. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

__all__ = [
    "BACKEND_COLUMNS",
    "EVENT_COLUMNS",
    "REQUEST_COLUMNS",
    "SORTS",
    "Row",
    "backend_rows",
    "event_rows",
    "header_lines",
    "printable",
    "request_rows",
    "sparkline",
]

_UNKNOWN = "-"
_BARS = "▁▂▃▄▅▆▇█"
_WORST_FIRST = ("down", "suspect", "frozen", "starting", "draining", "busy", "ready")
_LEVELS = {"down": "error", "suspect": "error", "frozen": "warning", "starting": "warning", "busy": "warning"}
_PHASES = ("queued", "prefill", "resumed", "decode")

BACKEND_COLUMNS = (
    "backend", "state", "in flight", "waiting", "req/s", "tok/s in", "tok/s out", "ttft p50", "ttft p95", "err/min",
    "models", "reason",
)  # fmt: skip
REQUEST_COLUMNS = (
    "id", "phase", "age", "model", "key", "backend", "tokens", "tok/s", "position", "wait", "why",
)  # fmt: skip
EVENT_COLUMNS = ("time", "count", "kind", "event")


class Row(NamedTuple):
    """A row of a table.

    Attributes:
        key: what the row is about: the name of a backend, the id of a request or of an event.
        cells: its texts, in the order of the columns.
        level: ``error``, ``warning``, or empty for a row that is as it should be.
    """

    key: str
    cells: Sequence[str]
    level: str = ""


def _by_problems(backend: Mapping[str, Any]) -> tuple[Any, ...]:
    state = backend["shown_state"]
    rank = _WORST_FIRST.index(state) if state in _WORST_FIRST else 0
    return rank, -(backend["errors_per_minute"] or 0), backend["name"]


SORTS: Mapping[str, Callable[[Mapping[str, Any]], Any]] = {
    "problems": _by_problems,
    "name": lambda backend: backend["name"],
    "load": lambda backend: (-(backend["in_flight"] or 0), backend["name"]),
}
"""Orders of backends by name; the first one is the usual one."""


def header_lines(snapshot: Mapping[str, Any]) -> list[str]:
    """A few lines about the whole proxy."""
    fleet, workers = snapshot["fleet"], snapshot["workers"]
    silent = f", silent: {', '.join(map(str, workers['silent']))}" if workers["silent"] else ""
    several = f"  workers {workers['count']}{silent}" if workers["count"] > 1 else ""
    lines = [
        f"{fleet['status'].upper()}  {fleet['available']} of {fleet['total']} backends take requests  "
        f"policy {snapshot['policy']}  version {snapshot['version']}{several}",
        f"in flight {_of(fleet['in_flight'], fleet['slots'])}  queue {_of(fleet['queue'], fleet['queue_limit'])}"
        f"  requests/s {_number(fleet['requests_per_second'])}  errors/s {_number(fleet['errors_per_second'])}"
        f"  tokens/s in {_number(fleet['tokens_in_per_second'])} out {_number(fleet['tokens_out_per_second'])}"
        f"  ttft p50 {_seconds(fleet['ttft_p50'])} p95 {_seconds(fleet['ttft_p95'])}",
    ]
    queue = snapshot["queue"]
    if queue["by_key"]:
        by_key = ", ".join(f"{one['key'] or 'no key'} {one['requests']}" for one in queue["by_key"][:8])
        lines.append(f"waiting: {by_key}; expected wait {_seconds(queue['expected_wait'])}")
    if snapshot["audience"] != "operator":
        lines.append("Without ADMIN_KEY, only backends are shown (--admin-key, or the variable ADMIN_KEY).")
    return [printable(line) for line in lines]


def backend_rows(snapshot: Mapping[str, Any], sort: str = "problems", text: str = "") -> list[Row]:
    """The backends whose name, state or models contain ``text``, in the order ``sort``."""
    wanted = text.lower()
    rows = []
    for backend in sorted(snapshot["backends"], key=SORTS[sort]):
        models = ", ".join(backend["models"])
        if wanted in f"{backend['name']} {backend['shown_state']} {models}".lower():
            cells = (
                backend["name"], backend["shown_state"], _of(backend["in_flight"], backend["limit"]),
                _number(backend["waiting"]), _number(backend["requests_per_second"]),
                _number(backend["tokens_in_per_second"]), _number(backend["tokens_out_per_second"]),
                _seconds(backend["ttft_p50"]), _seconds(backend["ttft_p95"]), _number(backend["errors_per_minute"]),
                models, backend["reason"],
            )  # fmt: skip
            rows.append(_row(backend["name"], cells, _LEVELS.get(backend["shown_state"], "")))
    return rows


def request_rows(snapshot: Mapping[str, Any], text: str = "") -> list[Row]:
    """The live requests that contain ``text``: those that wait first, in each phase the longest first."""
    wanted = text.lower()
    rows = []
    for request in sorted(snapshot["requests"]["shown"], key=lambda one: (_PHASES.index(one["phase"]), -one["age"])):
        name = f"{request['alias']} = {request['model']}" if request["alias"] else request["model"]
        cells = (
            request["id"], request["phase"], _seconds(request["age"]), name or _UNKNOWN, request["key"] or _UNKNOWN,
            request["backend"] or _UNKNOWN, _number(request["tokens"]), _number(request["tokens_per_second"]),
            _number(request["position"]), _seconds(request["expected_wait"]), request["why"] or "",
        )  # fmt: skip
        if wanted in " ".join(cells).lower():
            rows.append(_row(request["id"], cells, "warning" if request["phase"] == "queued" else ""))
    return rows


def event_rows(snapshot: Mapping[str, Any], text: str = "") -> list[Row]:
    """The events that contain ``text``, the latest first."""
    wanted = text.lower()
    rows = []
    for event in sorted(snapshot["events"], key=lambda one: (-one["at"], -one["id"])):
        time = datetime.fromtimestamp(event["at"]).astimezone().strftime("%H:%M:%S")
        count = "" if event["count"] == 1 else f"{event['count']}x"
        if wanted in f"{event['kind']} {event['text']}".lower():
            level = "" if event["severity"] == "info" else event["severity"]
            rows.append(_row(str(event["id"]), (time, count, event["kind"], event["text"]), level))
    return rows


def sparkline(numbers: Sequence[float | None], width: int) -> str:
    """The latest ``numbers`` as bars, one character each; blank for unknown ones."""
    shown = numbers[-width:]
    most = max((number for number in shown if number is not None), default=0)
    return "".join(
        " " if number is None else _BARS[round(number / most * (len(_BARS) - 1)) if most else 0] for number in shown
    )


def printable(text: str) -> str:
    """``text`` without characters that control a terminal: clients and engines choose some of what is shown."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)


def _row(key: str, cells: Sequence[str], level: str) -> Row:
    return Row(key, tuple(map(printable, cells)), level)


def _number(number: float | None) -> str:
    if number is None:
        return _UNKNOWN
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return _UNKNOWN
    if seconds >= 120:
        return f"{seconds / 60:.0f} min"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def _of(number: float | None, limit: float | None) -> str:
    return _number(number) if limit is None else f"{_number(number)} of {_number(limit)}"
