"""Whether the server of the shared state answers, and how long to pause before the next attempt. No I/O."""

from __future__ import annotations

import logging
from collections.abc import Callable
from random import uniform

__all__ = ["Availability"]

_FIRST_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 5.0
_STABLE_SECONDS = 30.0  # after which a new failure is not taken for a part of the previous one

logger = logging.getLogger(__name__)


class Availability:
    """Takes the results of attempts; logs one line when the server stops answering, and one when it answers again.

    Args:
        server: its address, without a password.
        now: seconds since the epoch.

    Attributes:
        is_available: whether the latest attempt succeeded; false before the first one.
        since: when that last changed, in seconds since the epoch.
        failures: how often the server stopped answering, the start included.
    """

    def __init__(self, server: str, now: Callable[[], float]) -> None:
        self._server = server
        self._now = now
        self._attempts = 0  # in vain, in a row
        self._has_begun = False
        self.is_available = False
        self.since = now()
        self.failures = 0

    def succeeded(self) -> bool:
        """The server has answered; returns whether it is available again."""
        if self.is_available:
            if self._attempts and self._now() - self.since >= _STABLE_SECONDS:
                self._attempts = 0
            return False
        seconds = self._now() - self.since
        if self.failures:
            logger.warning("shared state: %s answers again, after %.0f s", self._server, seconds)
        else:
            logger.info("shared state: connected to %s", self._server)
        self._change(is_available=True)
        return True

    def failed(self, reason: str) -> None:
        """An attempt has failed."""
        self._attempts += 1
        if self.is_available or not self._has_begun:
            self.failures += 1
            logger.warning(
                "shared state: %s cannot be used: %s. Requests are served all the same; each process goes on with what "
                "it knows",
                self._server,
                reason,
            )
            self._change(is_available=False)

    def pause_seconds(self) -> float:
        """The pause before the next attempt, while the server is not available: longer each time, and random."""
        longest = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2.0 ** min(max(self._attempts - 1, 0), 10))
        return uniform(longest / 2, longest)

    def _change(self, *, is_available: bool) -> None:
        self._has_begun = True
        self.is_available = is_available
        self.since = self._now()
