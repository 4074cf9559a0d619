"""Metrics that compare the active policy with the shadow policy."""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client.core import CounterMetricFamily, Metric

from inference_engine_proxy_server.routing.shadow import ShadowCounts

__all__ = ["ShadowCollector"]


class ShadowCollector:
    """What the shadow policy would have changed.

    Args:
        counts: the comparison.
    """

    def __init__(self, counts: ShadowCounts) -> None:
        self._counts = counts

    def collect(self) -> Iterable[Metric]:
        """The families, for a scrape."""
        counts = self._counts
        yield _counter(
            "decisions", "Decisions by the choice of the shadow policy.", "choice",
            {"same": counts.same, "different": counts.different},
        )  # fmt: skip
        policies = {"active": counts.active, "shadow": counts.shadow}
        yield _counter(
            "read_tokens", "Prompt tokens that the chosen backend was expected to read.", "policy",
            {name: expected.read_tokens for name, expected in policies.items()},
        )  # fmt: skip
        yield _counter(
            "first_token_seconds", "Expected time from each decision to the first token.", "policy",
            {name: expected.first_token_seconds for name, expected in policies.items()},
        )  # fmt: skip


def _counter(name: str, text: str, label: str, values: dict[str, float]) -> Metric:
    family = CounterMetricFamily(f"inference_proxy_shadow_{name}", text, labels=[label])
    for value, count in values.items():
        family.add_metric([value], count)
    return family
