"""Readiness: whether this process should get requests, and whether anything probes that."""

from __future__ import annotations

import math
from collections.abc import Callable

__all__ = ["Readiness"]

_PROBED_SECONDS = 60.0  # after a probe of /readyz, a load balancer is assumed to act on the next one
_ANNOUNCE_SECONDS = 10.0  # between two announcements of probes to the other workers


class Readiness:
    """The readiness of one process.

    Args:
        grace_seconds: how long a stopping process still accepts connections if its readiness is probed.
        announce: reports a probe to the other workers.
        clock: monotonic clock, in seconds.

    Attributes:
        is_stopping: whether the process has been asked to stop.
    """

    def __init__(self, grace_seconds: float, announce: Callable[[], None], clock: Callable[[], float]) -> None:
        self.is_stopping = False
        self._grace_seconds = grace_seconds
        self._announce = announce
        self._clock = clock
        self._probed_at = -math.inf

    def probe(self) -> bool:
        """Whether the process is stopping; called for each probe of this process."""
        if self._clock() - self._probed_at > _ANNOUNCE_SECONDS:
            self._announce()
        self.record_probe()
        return self.is_stopping

    def record_probe(self) -> None:
        """Record a probe of this or another worker."""
        self._probed_at = self._clock()

    def begin_shutdown(self, *, may_linger: bool) -> float:
        """Report from now on that the process is stopping.

        Args:
            may_linger: the process need not stop at once.

        Returns:
            How many seconds new connections should still be accepted.
        """
        self.is_stopping = True
        is_probed = self._clock() - self._probed_at <= _PROBED_SECONDS
        return self._grace_seconds if may_linger and is_probed else 0.0
