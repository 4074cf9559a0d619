"""A made-up fleet of any size, as snapshots of the dashboard's feed (docs/dashboard.md)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

__all__ = ["STARTED_AT", "ScriptedFleet"]

STARTED_AT = 1_790_000_000.0
_MODELS = ("qwen3-32b", "llama-3.3-70b", "gemma-3-27b", "nomic-embed-text")
_KEYS = ("web-chat", "agents", "batch", "mobile")
_REASONS = {
    "down": "it cannot be reached, because nothing listens there: check that the engine runs, and its port",
    "frozen": "it has answered no poll for 24 s while it has 5 requests: look at the engine's log and its GPU",
    "suspect": "3 of its last 5 requests failed: it broke the connection before its reply began",
    "starting": "it loads its model and answers 503 until then",
    "draining": "an operator drains it: it finishes 2 requests and gets no new ones",
}
_SLOTS = 8


@dataclass
class ScriptedFleet:
    """A fleet that moves with each tick, and obeys commands.

    Attributes:
        size: number of backends.
        states: states other than ready or busy, by the number of the backend.
        admin_key: the operators' key; ``None`` when it is not set.
        cancelled: ids of requests that were cancelled.
        differences: between replicas, as the snapshot has them.
        prefix: of the names of backends.
        queue: requests that wait.
    """

    size: int
    states: dict[int, str] = field(default_factory=dict)
    admin_key: str | None = None
    cancelled: set[str] = field(default_factory=set)
    differences: list[dict[str, Any]] = field(default_factory=list)
    prefix: str = "gpu-"
    queue: int = 17

    def name(self, number: int) -> str:
        return f"{self.prefix}{number:0{len(str(self.size))}d}"

    def obey(self, name: str, *, drains: bool) -> bool:
        """Drain or undrain a backend; returns whether there is one of this name."""
        numbers = [number for number in range(1, self.size + 1) if self.name(number) == name]
        for number in numbers:
            if drains:
                self.states[number] = "draining"
            else:
                self.states.pop(number, None)
        return bool(numbers)

    def snapshot(self, tick: int, *, is_operator: bool, is_first: bool) -> dict[str, Any]:
        """The snapshot of a tick, which is a second, for one audience."""
        backends = [self._backend(number, tick, is_operator) for number in range(1, self.size + 1)]
        at = STARTED_AT + tick
        whole = {
            "complete": is_first,
            "version": "0.1.0",
            "at": at,
            "started_at": STARTED_AT - 93_784,
            "audience": "operator" if is_operator else "public",
            "admin_key": "unset" if self.admin_key is None else "accepted" if is_operator else "required",
            "workers": {"count": 2, "silent": []},
            "policy": "expected_time",
            "fleet": self._totals(backends),
            "differences": self.differences,
            "backends": backends,
        }
        if is_operator:
            requests = list(self._requests(tick))
            by_key = [{"key": key, "requests": count} for key, count in (("agents", 5), ("batch", 12))]
            whole["requests"] = {"total": len(requests) + 30, "shown": requests}
            whole["queue"] = {"by_key": by_key, "expected_wait": 3.5}
        events = self._events(tick) if is_first else []
        whole["events"] = [one for one in events if is_operator or one["kind"] in ("state", "drain")]
        if is_first or tick % 10 == 0:
            whole["history"] = _history(at)
            if is_operator:
                whole["usage"] = {"by_model": _usage(_MODELS), "by_key": _usage(_KEYS)}
        return whole

    def decisions(self, tick: int) -> list[dict[str, Any]]:
        """The answer of ``/admin/decisions``, the newest first."""
        return [self._decision(tick, number) for number in range(12)]

    def _backend(self, number: int, tick: int, is_operator: bool) -> dict[str, Any]:
        state = self.states.get(number, "ready")
        works = state in ("ready", "suspect", "draining")
        running = round(_wave(number, tick, _SLOTS)) if works else 5 if state == "frozen" else 0
        waiting = max(0, round(_wave(number + 7, tick, 9)) - 6) if works and running == _SLOTS else 0
        if state == "ready" and waiting:
            state = "busy"
        model = _MODELS[number % 3] if number % 10 else _MODELS[3]
        llamacpp = number % 2 == 0
        return {
            "name": self.name(number) if is_operator else f"backend-{number}",
            "url": f"http://{self.name(number)}.example:8080" if is_operator else None,
            "engine": "llamacpp" if llamacpp else "vllm",
            "source": "configuration" if is_operator else None,
            "engine_version": ("b11549" if llamacpp else "0.32.0") if works else None,
            "state": {"ready": "up", "frozen": "busy", "draining": "up"}.get(state, state),
            "shown_state": state,
            "reason": _REASONS.get(state, ""),
            "since": STARTED_AT - (number * 137 % 3000 if state in _REASONS else 93_000),
            "draining": state == "draining",
            "takes_requests": state == "ready",
            "tier": 1 if number <= self.size * 0.8 else 2,
            "models": [model],
            "contexts": {model: 32_768},
            "limit": 10 if llamacpp else None,
            "slots": _SLOTS,
            "in_flight": running + waiting,
            "processing": running if works else None,
            "waiting": waiting if works else None,
            "kv_cache_use": min(1.0, running / _SLOTS * 0.7 + 0.1) if works else None,
            "errors_per_minute": 9 if state == "suspect" else 0,
            **_figures(number, running if works else 0, waiting),
            "recent": [round(_wave(number, tick // 60 + back * 9, _SLOTS), 1) for back in range(60)]
            if works
            else [0] * 60,
        }

    def _totals(self, backends: list[dict[str, Any]]) -> dict[str, Any]:
        available = sum(one["takes_requests"] for one in backends)
        return {
            "status": "ok" if available == self.size else "degraded" if available else "unavailable",
            "available": available,
            "total": self.size,
            "slots": _SLOTS * self.size,
            "in_flight": sum(one["in_flight"] for one in backends),
            "processing": sum(one["processing"] or 0 for one in backends),
            "waiting": sum(one["waiting"] or 0 for one in backends),
            "queue": self.queue,
            "queue_limit": 512,
            "requests_per_second": sum(one["requests_per_second"] for one in backends),
            "errors_per_second": sum(one["errors_per_minute"] for one in backends) / 60,
            "tokens_in_per_second": sum(one["tokens_in_per_second"] for one in backends),
            "tokens_out_per_second": sum(one["tokens_out_per_second"] for one in backends),
            "ttft_p50": 0.21,
            "ttft_p95": 1.9,
        }

    def _requests(self, tick: int) -> Iterator[dict[str, Any]]:
        phases = ("decode", "decode", "prefill", "decode", "queued", "decode", "resumed")
        for number in range(24):
            phase = phases[number % len(phases)]
            is_queued = phase == "queued"
            row = {
                "id": f"8a88-{number + 1}",
                "model": _MODELS[number % 3],
                "alias": "claude-sonnet" if number % 5 == 0 else None,
                "key": _KEYS[number % 4],
                "path": "/v1/chat/completions",
                "backend": None if is_queued else self.name(number % self.size + 1),
                "why": "" if is_queued else "earliest expected first token: 0.17 s (the second best: 0.42 s)",
                "shadow": self.name(1) if number == 3 else None,
                "phase": phase,
                "tokens": 0 if phase in ("queued", "prefill") else tick * 31 % 4000 + number,
                "tokens_per_second": None if phase in ("queued", "prefill") else 31.0 - number % 4,
                "age": 1.5 * number + tick % 60,
                "position": number // 7 + 1 if is_queued else None,
                "expected_wait": 2.5 + number if is_queued else None,
                "resumes": int(phase == "resumed"),
                "worker": number % 2,
            }
            if row["id"] not in self.cancelled:
                yield row

    def _events(self, tick: int) -> list[dict[str, Any]]:
        events = []
        severities = {"down": "error", "frozen": "error", "suspect": "warning"}
        for at, (number, state) in enumerate(sorted(self.states.items())):
            if state not in _REASONS:
                continue
            text = f"{self.name(number)} is {state}: {_REASONS[state]}."
            kind = "drain" if state == "draining" else "state"
            events.append(_event(at, kind, severities.get(state, "info"), self.name(number), text))
        events.append(
            _event(90, "resume", "info", "gpu-03", "gpu-03 continues a stream that gpu-17 broke after 214 tokens.")
        )
        text = "Requests of the key batch were rejected, because the queue was full: they should wait 4 s."
        return [*events, _event(91, "rejection", "warning", None, text, count=38)]

    def _decision(self, tick: int, number: int) -> dict[str, Any]:
        chosen = (tick + number) % self.size + 1
        others = [chosen, *(one for one in range(1, self.size + 1) if one != chosen)][:6]
        candidates = []
        for rank, one in enumerate(others):
            terms = {
                "held_tokens": 3566.0 if not rank else 0.0,
                "place": 0.4 * (rank > 3),
                "before": 0.1 + 0.1 * (one % 4),
                "own": 0.01 if not rank else 0.85,
                "crowd": 0.003 * (one % 5),
                "memory": 0.01 * (one % 3),
                "home": -0.2 if not rank else 0.0,
                "tier": 0.0,
            }
            cost = sum(value for name, value in terms.items() if name != "held_tokens")
            candidates.append({"name": self.name(one), **terms, "cost": cost})
        return {
            "at": STARTED_AT + tick - number,
            "request_id": f"8a88-{number + 1}",
            "model": _MODELS[number % 3],
            "policy": "expected_time",
            "chosen": self.name(chosen),
            "prompt_tokens": 3800,
            "resumes": 0,
            "failures": {self.name(others[-1]): "backend_unreachable"} if number == 2 else {},
            "candidates": candidates,
            "left_out": max(0, self.size - len(candidates)),
            "shadow": {"policy": "least_requests", "chosen": self.name(others[number % 2]), "candidates": []},
        }


def _figures(number: int, running: int, waiting: int) -> dict[str, Any]:
    """What a backend with this many requests achieves."""
    return {
        "requests_per_second": running / 6,
        "tokens_in_per_second": running * 300.0,
        "tokens_out_per_second": running * 31.0,
        "ttft_p50": 0.08 + running * 0.03 if running else None,
        "ttft_p95": 0.4 + running * 0.21 + waiting if running else None,
        "predicted_hit_rate": 0.55 + _wave(number, 0, 0.4) if running else None,
        "real_hit_rate": 0.5 + _wave(number, 0, 0.4) if running else None,
    }


def _event(number: int, kind: str, severity: str, backend: str | None, text: str, count: int = 1) -> dict[str, Any]:
    at = STARTED_AT - 400 + number
    return {
        "id": number,
        "at": at,
        "first_at": at,
        "kind": kind,
        "severity": severity,
        "backend": backend,
        "text": text,
        "count": count,
    }


def _wave(number: int, tick: int, most: float) -> float:
    """A value between 0 and ``most`` that moves slowly, and differently for each number."""
    slow, fast = math.sin(tick / 37 + number * 1.7), math.sin(tick / 11 + number * 2.9)
    return most * (0.55 + 0.33 * slow + 0.12 * fast)


def _history(end: float) -> dict[str, Any]:
    ticks = [int(end) - 10 * back for back in range(360, 0, -1)]
    return {
        "step": 10,
        "end": end,
        "requests_per_second": [round(_wave(1, tick, 30), 2) for tick in ticks],
        "errors_per_second": [0.4 if 200 < at < 215 else 0.0 for at in range(360)],
        "ttft_p50": [round(0.1 + _wave(2, tick, 0.3), 3) for tick in ticks],
        "ttft_p95": [round(0.8 + _wave(2, tick, 1.6), 3) for tick in ticks],
        "tokens_in_per_second": [round(_wave(3, tick, 40_000)) for tick in ticks],
        "tokens_out_per_second": [round(_wave(3, tick, 4_800)) for tick in ticks],
        "queue": [max(0, round(_wave(5, tick, 40)) - 20) for tick in ticks],
    }


def _usage(names: tuple[str, ...]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "requests": 18_230 // (at + 1),
            "input_tokens": 71_400_000 // (at + 1),
            "cached_tokens": 44_000_000 // (at + 1),
            "output_tokens": 6_900_000 // (at + 1),
        }
        for at, name in enumerate(names)
    ]
