"""The parts of a snapshot that change only every ten seconds: the history of the last hour, and the usage."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from inference_engine_proxy_server.dashboard.audience import Audience
from inference_engine_proxy_server.dashboard.traffic import STEP_SECONDS, STEPS, Step, merged_steps
from inference_engine_proxy_server.dashboard.usage_totals import TokenTotals, UsageTotals
from inference_engine_proxy_server.dashboard.worker_part import WorkerPart

__all__ = ["Totals"]

_MOST_ROWS = 100  # of the usage by model, and by key

_SERIES: dict[str, Callable[[Step], float | None]] = {
    "requests_per_second": lambda step: step.sums.requests / STEP_SECONDS,
    "errors_per_second": lambda step: step.sums.errors / STEP_SECONDS,
    "ttft_p50": lambda step: step.sums.percentile(0.5),
    "ttft_p95": lambda step: step.sums.percentile(0.95),
    "tokens_in_per_second": lambda step: step.sums.tokens_in / STEP_SECONDS,
    "tokens_out_per_second": lambda step: step.sums.tokens_out / STEP_SECONDS,
    "queue": lambda step: step.queue,
}


@dataclass(frozen=True, slots=True)
class Totals:
    """History and usage of all workers, as each last reported them.

    Attributes:
        steps, usage: by worker.
        history, users: all of them together, as they are shown.
    """

    steps: Mapping[int, list[Step]] = field(default_factory=dict)
    usage: Mapping[int, UsageTotals] = field(default_factory=dict)
    history: Mapping[str, Any] = field(default_factory=dict)
    users: Mapping[str, Any] = field(default_factory=dict)

    def updated(self, parts: Iterable[WorkerPart], step: int) -> Totals:
        """The totals after new reports, in the step with this number; those of a silent worker stay as they were."""
        steps = {**self.steps, **{part.worker: part.steps for part in parts if part.steps is not None}}
        usage = {**self.usage, **{part.worker: part.usage for part in parts if part.usage is not None}}
        return Totals(steps, usage, _history_of(steps.values(), step), _usage_of(usage.values()))

    def as_json(self, audience: Audience) -> dict[str, Any]:
        """What ``audience`` may see of them."""
        shown = {"history": self.history}
        return {**shown, "usage": self.users} if audience.is_operators else shown


def _history_of(parts: Iterable[Iterable[Step]], now: int) -> dict[str, Any]:
    """The last hour, up to the step with the number ``now``, which is not complete."""
    steps = merged_steps(parts)
    numbers = range(now - STEPS, now)
    series = {
        name: [None if (step := steps.get(number)) is None else value_of(step) for number in numbers]
        for name, value_of in _SERIES.items()
    }
    return {"step": STEP_SECONDS, "end": now * STEP_SECONDS, **series}


def _usage_of(parts: Iterable[UsageTotals]) -> dict[str, Any]:
    merged = UsageTotals.merged(parts)
    return {"by_model": _rows(merged.by_model), "by_key": _rows(merged.by_key)}


def _rows(totals: dict[str, TokenTotals]) -> list[dict[str, Any]]:
    """Those with the most requests."""
    ranked = sorted(totals.items(), key=lambda pair: -pair[1].requests)[:_MOST_ROWS]
    return [{"name": name or None, **msgspec.structs.asdict(one)} for name, one in ranked]
