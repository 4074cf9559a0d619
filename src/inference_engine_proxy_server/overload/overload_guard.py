"""Keeps the proxy from drowning: refuses what there is no room for, early and cheaply, until there is room again."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass

from inference_engine_proxy_server.errors import CapacityError
from inference_engine_proxy_server.overload.loop_lag import BlockerWitness, LoopLag
from inference_engine_proxy_server.overload.memory_use import MemoryUse
from inference_engine_proxy_server.requests.destinations import ANSWERED_HERE
from inference_engine_proxy_server.wire.load import Load
from inference_engine_proxy_server.wire.request_head import RequestHead

__all__ = ["OverloadGuard"]

_TICK_SECONDS = 0.1
_SLOW_TICK_SECONDS = 1.0  # for what changes slowly or costs more to ask
_CALM_SECONDS = 10.0  # without which a new trouble is the old one, and not logged again
_BLOCKED_SECONDS = 1.0  # without a turn of the loop, after which it is worth knowing who is to blame
_MEMORY_HIGH = 0.85  # replies end their connections, so that what those hold comes back
_MEMORY_FULL = 0.95
_FREED_AT_A_TIME = 64  # idle connections that are closed when no file can be opened

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Trouble:
    """One kind of it, which comes and goes in episodes; each is logged once when it begins and once when it ends."""

    message: str
    _ends_at: float | None = None

    def note(self, now: float, *detail: object, is_there: bool) -> None:
        if is_there:
            if self._ends_at is None:
                logger.warning(self.message, *detail)
            self._ends_at = now + _CALM_SECONDS
        elif self._ends_at is not None and now >= self._ends_at:
            self._ends_at = None
            logger.info("over: %s", self.message.partition(":")[0])


class OverloadGuard:
    """Watches what this process has left, and sets the bounds that the clients' connections compare with.

    Args:
        load: of the clients; its bounds are the most that is allowed.
        memory: of this process.
        is_own: whether a request asks for this proxy's own paths, which always answer: who wants to know how it is
            wants it most when it is not well.
        count_shed: told why, for each request or connection that is refused.
        clock: seconds that only grow.

    Attributes:
        lag_seconds: how late the event loop is.
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
        self._reason = ""  # why nothing is admitted; empty: it is
        self._memory_share = 0.0
        self._give_back_at = 0.0
        self._is_draining = False
        self._late = _Trouble("overloaded: the event loop is %.1f s late; new requests are refused until it recovers")
        self._memory_high = _Trouble("memory is short: %.0f %% of the limit is in use; connections end early")
        self._memory_full = _Trouble("memory is full: %.0f %% of the limit is in use; new requests are refused")
        self._no_files = _Trouble("no more files can be opened: new connections fail until some are closed (ulimit -n)")

    @property
    def lag_seconds(self) -> float:
        """How late the event loop was at the last look."""
        return self._lag.seconds

    def shed(self, reason: str, head: RequestHead | None) -> None:
        """Refuse a request, or a connection when ``head`` is ``None``, that a bound keeps out.

        Raises:
            CapacityError: unless it is for the proxy's own paths.
        """
        # A body is never the proxy's own: none of its paths needs one.
        if head is not None and reason != "request_bytes" and head.destination in ANSWERED_HERE:
            return
        self._count_shed(self._reason if self._reason and reason == "requests" else reason)
        raise CapacityError("The proxy has no room for this now.", code="overloaded", retry_after_seconds=1)

    def drain(self) -> None:
        """The process will stop: each connection ends with its next reply."""
        self._is_draining = True
        self._load.ends_connections = True

    async def run(self) -> None:
        """Look several times a second, until cancelled."""
        look_slowly_at = 0.0
        with BlockerWitness(_BLOCKED_SECONDS) as witness:
            while True:
                witness.postpone()
                self._lag.expect(_TICK_SECONDS)
                await asyncio.sleep(_TICK_SECONDS)
                self._lag.look()
                if witness.seen:
                    logger.warning("the event loop stood still for %.1f s, at: %s", self._lag.seconds, witness.seen)
                    witness.seen = ""
                now = self._clock()
                self._look_at_files(now)
                if now >= look_slowly_at:
                    look_slowly_at = now + _SLOW_TICK_SECONDS
                    self._look_at_memory(now)
                self._decide(now)

    def _look_at_files(self, now: float) -> None:
        """The event loop refuses connections without a word when no file can be opened, so this is where it is said."""
        try:
            os.close(os.open("/", os.O_RDONLY))
        except OSError as error:
            is_there = error.errno in (errno.EMFILE, errno.ENFILE)
        else:
            is_there = False
        self._no_files.note(now, is_there=is_there)
        if is_there:
            for _ in range(_FREED_AT_A_TIME):
                if not self._load.close_longest_idle():
                    break

    def _look_at_memory(self, now: float) -> None:
        self._memory_share = share = self._memory.share()
        self._memory_high.note(now, share * 100, is_there=share >= _MEMORY_HIGH)
        self._memory_full.note(now, share * 100, is_there=share >= _MEMORY_FULL)
        if share >= _MEMORY_HIGH and now >= self._give_back_at:
            self._give_back_at = now + _CALM_SECONDS
            self._memory.give_back()

    def _decide(self, now: float) -> None:
        self._late.note(now, self._lag.seconds, is_there=self._lag.is_lasting)
        if self._lag.is_lasting:
            self._reason, self._load.most_requests = "event_loop", 0
        elif self._memory_share >= _MEMORY_FULL:
            # One at a time is always served: memory that does not come back must not end the service.
            self._reason, self._load.most_requests = "memory", 1
        else:
            self._reason, self._load.most_requests = "", self._most_requests
        self._load.ends_connections = self._is_draining or self._memory_share >= _MEMORY_HIGH
