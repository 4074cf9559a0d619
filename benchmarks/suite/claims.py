"""The project's performance claims, checked against the figures of a run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from suite.figures import Figures
from suite.targets import OURS_NAME

__all__ = ["CLAIMS", "Claim", "claims_as_json"]


@dataclass(frozen=True, slots=True)
class Claim:
    """A limit for a figure.

    Attributes:
        figure: extracts the figure; ``None`` if the run lacks it.
        at_least: the limit is a lower bound; otherwise, an upper bound.
    """

    text: str
    figure: Callable[[Figures], float | None]
    limit: float
    at_least: bool = False

    def holds(self, figures: Figures) -> bool | None:
        """Whether the claim holds; ``None`` if the run lacks the figure."""
        figure = self.figure(figures)
        if figure is None:
            return None
        return figure >= self.limit if self.at_least else figure <= self.limit

    @property
    def bound(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:g}"


def _relative_to(name: str, peer: str) -> Callable[[Figures], float | None]:
    def ratio(figures: Figures) -> float | None:
        spread = figures.ratio(name, peer)
        return None if spread is None else spread.median

    return ratio


def _growth(name: str, base: str) -> Callable[[Figures], float | None]:
    def growth(figures: Figures) -> float | None:
        spread = figures.growth(name, base)
        return None if spread is None else spread.median

    return growth


def _ours(name: str) -> Callable[[Figures], float | None]:
    return lambda figures: figures.median(name, OURS_NAME)


CLAIMS = (
    Claim("CPU per request, 1 KB, relative to vllm-router", _relative_to("cpu-1kb", "vllm-router"), 0.75),
    Claim("CPU per request, 1 KB, relative to smg", _relative_to("cpu-1kb", "smg"), 0.45),
    Claim("CPU per request, 20 KB, relative to vllm-router", _relative_to("cpu-20kb", "vllm-router"), 0.6),
    Claim("CPU per request, 1 KB, relative to nginx", _relative_to("cpu-1kb", "nginx"), 2.0),
    Claim("CPU per request, 1 KB, relative to LiteLLM", _relative_to("cpu-1kb", "litellm"), 1 / 200),
    Claim("CPU per event, 256 streams, relative to vllm-router", _relative_to("cpu-event", "vllm-router"), 0.95),
    Claim("CPU per event, 256 streams, relative to nginx", _relative_to("cpu-event", "nginx"), 1.15),
    Claim(
        "added latency p50, 1 connection, relative to vllm-router", _relative_to("latency-1-p50", "vllm-router"), 1.0
    ),
    Claim(
        "added latency p99, 1 connection, relative to vllm-router", _relative_to("latency-1-p99", "vllm-router"), 1.0
    ),
    Claim("most streams, relative to vllm-router", _relative_to("most-streams", "vllm-router"), 1.0, at_least=True),
    Claim("1,000 streams: events in time (%)", _ours("delivered-1000"), 98, at_least=True),
    Claim("1,000 streams: delay of events, p99 (ms)", _ours("lag-1000"), 250),
    Claim("1,000 streams: memory (MB)", _ours("memory-1000"), 80),
    Claim("5,000 mostly idle streams: memory of one (KB)", _ours("memory-stream"), 20),
    Claim("CPU per request, 256 backends relative to 2", _growth("fleet-256", "fleet-2"), 1.15),
    Claim(
        "requests/s, 2 processes on 2 cores relative to 1 on 1",
        _growth("workers-2-capacity", "workers-1-capacity"),
        1.7,
        at_least=True,
    ),
)


def claims_as_json(figures: Figures) -> list[dict[str, Any]]:
    return [
        {"claim": claim.text, "limit": claim.bound, "figure": claim.figure(figures), "holds": claim.holds(figures)}
        for claim in CLAIMS
    ]
