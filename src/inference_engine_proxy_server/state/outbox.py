"""Messages that are sent in the background. Whoever posts one never waits; one that cannot be sent is lost."""

from __future__ import annotations

import asyncio
from collections import deque

from inference_engine_proxy_server.state.broadcast import Broadcast
from inference_engine_proxy_server.state.shared_state import StateUnavailableError

__all__ = ["Outbox"]

_MOST = 1000  # that wait; older ones are no longer news


class Outbox:
    """Sends messages one after another.

    Args:
        broadcast: to all members.
    """

    def __init__(self, broadcast: Broadcast) -> None:
        self._broadcast = broadcast
        self._waiting: deque[tuple[str, bytes]] = deque(maxlen=_MOST)
        self._wake = asyncio.Event()

    def post(self, topic: str, message: bytes) -> None:
        """Send ``message`` soon, if the server can be reached."""
        self._waiting.append((topic, message))
        self._wake.set()

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                while self._waiting:
                    await self._broadcast.send(*self._waiting.popleft())
            except StateUnavailableError:
                self._waiting.clear()
