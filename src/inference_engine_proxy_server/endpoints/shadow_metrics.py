"""Metrics that compare the active policy with the shadow policy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from inference_engine_proxy_server.routing.shadow import ShadowCounts
from inference_engine_proxy_server.telemetry.exposition import Labels, family

__all__ = ["ShadowMetrics"]


class ShadowMetrics:
    """What the shadow policy would have changed.

    Args:
        counts: the comparison.
        labels: formats labels.
    """

    def __init__(self, counts: ShadowCounts, labels: Labels) -> None:
        self._counts = counts
        self._labels = labels

    def families(self) -> Iterator[str]:
        """All families, see :data:`~.exposition.Families`."""
        counts = self._counts
        yield from self._counter(
            "decisions", "Decisions by the choice of the shadow policy.", "choice",
            {"same": counts.same, "different": counts.different},
        )  # fmt: skip
        policies = {"active": counts.active, "shadow": counts.shadow}
        yield from self._counter(
            "read_tokens", "Prompt tokens that the chosen backend was expected to read.", "policy",
            {name: expected.read_tokens for name, expected in policies.items()},
        )  # fmt: skip
        yield from self._counter(
            "first_token_seconds", "Expected time from each decision to the first token.", "policy",
            {name: expected.first_token_seconds for name, expected in policies.items()},
        )  # fmt: skip

    def _counter(self, name: str, text: str, label: str, values: Mapping[str, float]) -> Iterator[str]:
        samples = [(self._labels.of(**{label: value}), count) for value, count in values.items()]
        yield from family(f"inference_proxy_shadow_{name}_total", "counter", text, samples)
