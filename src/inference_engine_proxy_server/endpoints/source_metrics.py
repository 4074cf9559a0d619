"""Metrics of the sources of backends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from inference_engine_proxy_server.discovery.union import Member
from inference_engine_proxy_server.telemetry.exposition import Labels, family

__all__ = ["SourceMetrics"]


class SourceMetrics:
    """What each source has found, and whether it answers.

    Args:
        sources: what each source has found.
        labels: formats labels.
    """

    def __init__(self, sources: Callable[[], Sequence[Member]], labels: Labels) -> None:
        self._sources = sources
        self._labels = labels

    def families(self) -> Iterator[str]:
        """All families, see :data:`~.exposition.Families`."""
        labelled = [(self._labels.of(source=one.name), one) for one in self._sources()]
        yield from family(
            "inference_proxy_source_backends",
            "gauge",
            "Backends of the last set that the source found.",
            ((label, len(one.backends)) for label, one in labelled),
        )
        yield from family(
            "inference_proxy_source_failing",
            "gauge",
            "1 while the source does not answer, and its last set stays in force.",
            ((label, int(bool(one.problem))) for label, one in labelled),
        )
        yield from family(
            "inference_proxy_source_answered_timestamp_seconds",
            "gauge",
            "When the source last answered.",
            ((label, one.answered_at) for label, one in labelled if one.answered_at is not None),
        )
