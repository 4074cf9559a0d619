"""Keeps one engine announced to one proxy, through restarts of the proxy, and takes it out again."""

from __future__ import annotations

import asyncio
import logging
import random
import time

from inference_engine_proxy_server.announce.announcement import Announcement, ProxyAddress, Refused, Unreachable

__all__ = ["Announcer"]

_JITTER = 0.2  # of the interval, so that the announcements of a fleet do not coincide
_FIRST_RETRY_SECONDS = 0.5  # after a failure; each further one doubles it, up to the interval
_STEP_SECONDS = 2.0  # of a wait for the end of requests, so that each question is short

logger = logging.getLogger(__name__)


class Announcer:
    """One engine and one proxy.

    Args:
        proxy: gets the announcements.
        announcement: what is announced.
        interval_seconds: between two announcements; a failure is repeated sooner.

    Attributes:
        has_joined: whether the proxy has ever accepted an announcement.
        refused: set when the proxy says that it will never accept this announcement.
    """

    def __init__(self, proxy: ProxyAddress, announcement: Announcement, interval_seconds: float) -> None:
        self.has_joined = False
        self.refused = asyncio.Event()
        self._proxy = proxy
        self._announcement = announcement
        self._interval_seconds = interval_seconds
        self._failures = 0
        self._said = ""  # the last log line about this proxy

    async def run(self) -> None:
        """Announce, until cancelled. A request in progress ends first, so no announcement follows :meth:`leave`."""
        while True:
            sending = asyncio.get_running_loop().create_task(self._announce())
            try:
                await asyncio.shield(sending)
            except asyncio.CancelledError:
                await sending
                raise
            await asyncio.sleep(self._pause_seconds())

    def _pause_seconds(self) -> float:
        seconds = self._interval_seconds
        if self._failures:
            seconds = min(seconds, _FIRST_RETRY_SECONDS * 2.0 ** min(self._failures - 1, 10))
        return seconds * random.uniform(1 - _JITTER, 1 + _JITTER)

    async def _announce(self) -> None:
        try:
            answer = await asyncio.to_thread(self._proxy.announce, self._announcement)
        except (Unreachable, Refused) as error:
            self._failures += 1
            self._say(logging.WARNING, str(error))
            if isinstance(error, Refused) and error.is_final:
                self.refused.set()
            return
        self.has_joined, self._failures = True, 0
        source = answer.get("source")
        if source == "announcements":
            self._say(logging.INFO, f"{self._announcement.url} is in the fleet as {answer.get('name')}")
        else:
            self._say(logging.INFO, f"{self._announcement.url} is in the fleet already; its source is the {source}")

    def _say(self, level: int, text: str) -> None:
        """Log each change once."""
        if text != self._said:
            self._said = text
            logger.log(level, "%s: %s", self._proxy.url, text)

    async def leave(self, wait_seconds: float, *, moves: bool = False) -> bool:
        """End the lease, and wait until the proxy has no request on the engine; call it after :meth:`run` has ended.

        Args:
            wait_seconds: longest wait.
            moves: whether other backends take over the requests, as far as they can.

        Returns:
            Whether the engine can be stopped without harm, as far as this proxy is concerned.
        """
        if not self.has_joined:
            return True
        deadline = time.monotonic() + wait_seconds
        while True:
            left = max(0.0, deadline - time.monotonic())
            try:
                leaving = await asyncio.to_thread(
                    self._proxy.leave, self._announcement, min(left, _STEP_SECONDS), moves=moves
                )
            except (Unreachable, Refused) as error:
                ends = f"the lease ends within {self._announcement.lease_seconds:g} s"
                self._say(
                    logging.WARNING, f"{self._announcement.url} could not be taken out of the fleet, {ends}: {error}"
                )
                return False
            if leaving.source is not None:
                self._say(
                    logging.WARNING, f"{self._announcement.url} stays in the fleet; its source is the {leaving.source}"
                )
                return False
            if not leaving.requests or time.monotonic() >= deadline:
                break
            self._say(logging.INFO, f"{self._announcement.url} has left the fleet; it finishes its requests")
        if leaving.requests:
            self._say(logging.WARNING, f"{self._announcement.url} has left the fleet with {leaving.requests} requests")
            return False
        self._say(logging.INFO, f"{self._announcement.url} has left the fleet, and has no request")
        return True
