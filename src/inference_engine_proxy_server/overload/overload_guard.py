"""Overload guard: rejects requests early and cheaply while the process lacks resources."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

from inference_engine_proxy_server.errors import CapacityError
from inference_engine_proxy_server.overload.loop_lag import LoopBlockDetector, LoopLag
from inference_engine_proxy_server.overload.memory_use import MemoryUse
from inference_engine_proxy_server.requests.destinations import ANSWERED_HERE
from inference_engine_proxy_server.wire.load import Load
from inference_engine_proxy_server.wire.request_head import RequestHead

__all__ = ["OverloadGuard"]

_TICK_SECONDS = 0.1
_SLOW_TICK_SECONDS = 1.0  # for resources that change slowly or cost more to measure
_CALM_SECONDS = 10.0  # a problem that recurs sooner counts as the same episode, and is not logged again
_BLOCKED_SECONDS = 1.0  # the blocking code is logged if the loop is blocked for longer
_MEMORY_HIGH = 0.85  # from here on, connections close after their reply, which frees the memory that they hold
_MEMORY_FULL = 0.95
_CLOSED_AT_A_TIME = 64  # idle connections closed when no file descriptor is free

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Alert:
    """Logs the start and the end of each episode of one problem, once each."""

    message: str
    _ends_at: float | None = None

    def update(self, now: float, *detail: object, is_active: bool) -> None:
        if is_active:
            if self._ends_at is None:
                logger.warning(self.message, *detail)
            self._ends_at = now + _CALM_SECONDS
        elif self._ends_at is not None and now >= self._ends_at:
            self._ends_at = None
            logger.info("resolved: %s", self.message.partition(":")[0])


class OverloadGuard:
    """Watches this process's resources, and sets the limits in the clients' load.

    The proxy's own paths are never rejected: operators need health and metrics most when the proxy is overloaded.

    Args:
        load: the clients' load; its initial limits are the upper bounds.
        memory: memory use of this process.
        count_shed: called with the reason for each rejected request or connection.
        clock: monotonic clock, in seconds.
    """

    def __init__(
        self,
        load: Load,
        memory: MemoryUse,
        *,
        count_shed: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self._load = load
        self._memory = memory
        self._count_shed = count_shed
        self._clock = clock
        self._most_requests = load.most_requests
        self._lag = LoopLag(clock)
        self._reason = ""  # why new requests are rejected; empty while they are admitted
        self._memory_share = 0.0
        self._trim_at = 0.0
        self._is_shutting_down = False
        self._late = _Alert("overloaded: the event loop is %.1f s late; new requests are rejected until it recovers")
        self._memory_high = _Alert("memory is short: %.0f %% of the limit is in use; connections close early")
        self._memory_full = _Alert("memory is full: %.0f %% of the limit is in use; new requests are rejected")
        self._no_files = _Alert("no more files can be opened: new connections fail until some are closed (ulimit -n)")

    @property
    def lag_seconds(self) -> float:
        """Event-loop lag at the last measurement."""
        return self._lag.seconds

    def shed(self, reason: str, head: RequestHead | None) -> None:
        """Reject a request that exceeds a limit, or a connection if ``head`` is ``None``.

        Raises:
            CapacityError: unless the request is for one of the proxy's own paths.
        """
        # Request bodies are always rejected: none of the proxy's own paths needs one.
        if head is not None and reason != "request_bytes" and head.destination in ANSWERED_HERE:
            return
        self._count_shed(self._reason if self._reason and reason == "requests" else reason)
        raise CapacityError("The proxy is overloaded.", code="overloaded", retry_after_seconds=1)

    def begin_shutdown(self) -> None:
        """Close each connection after its next reply, because the process will stop."""
        self._is_shutting_down = True
        self._load.ends_connections = True

    async def run(self) -> None:
        """Measure several times per second, until cancelled."""
        check_memory_at = 0.0
        with LoopBlockDetector(_BLOCKED_SECONDS) as detector:
            while True:
                detector.rearm()
                self._lag.begin_sleep(_TICK_SECONDS)
                await asyncio.sleep(_TICK_SECONDS)
                self._lag.end_sleep()
                if stack := detector.blocking_stack:
                    logger.warning("the event loop was blocked for %.1f s, at: %s", self._lag.seconds, stack)
                    detector.blocking_stack = ""
                now = self._clock()
                self._check_files(now)
                if now >= check_memory_at:
                    check_memory_at = now + _SLOW_TICK_SECONDS
                    self._check_memory(now)
                self._set_limits(now)

    def _check_files(self, now: float) -> None:
        """Log a lack of file descriptors, because the event loop then drops new connections silently."""
        try:
            os.close(os.open("/", os.O_RDONLY))
        except OSError as error:
            is_lacking = error.errno in (errno.EMFILE, errno.ENFILE)
        else:
            is_lacking = False
        self._no_files.update(now, is_active=is_lacking)
        if is_lacking:
            for _ in range(_CLOSED_AT_A_TIME):
                if not self._load.close_longest_idle():
                    break

    def _check_memory(self, now: float) -> None:
        self._memory_share = share = self._memory.share()
        self._memory_high.update(now, share * 100, is_active=share >= _MEMORY_HIGH)
        self._memory_full.update(now, share * 100, is_active=share >= _MEMORY_FULL)
        if share >= _MEMORY_HIGH and now >= self._trim_at:
            self._trim_at = now + _CALM_SECONDS
            self._memory.trim()

    def _set_limits(self, now: float) -> None:
        self._late.update(now, self._lag.seconds, is_active=self._lag.is_lasting)
        if self._lag.is_lasting:
            self._reason, self._load.most_requests = "event_loop", 0
        elif self._memory_share >= _MEMORY_FULL:
            # One request at a time is always served, so that memory that is never freed cannot end the service.
            self._reason, self._load.most_requests = "memory", 1
        else:
            self._reason, self._load.most_requests = "", self._most_requests
        self._load.ends_connections = self._is_shutting_down or self._memory_share >= _MEMORY_HIGH
