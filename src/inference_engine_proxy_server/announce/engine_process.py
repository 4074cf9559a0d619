"""An engine that the announcer has started."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Sequence

__all__ = ["EngineProcess"]

logger = logging.getLogger(__name__)


class EngineProcess:
    """The process of an engine.

    It has a session of its own: CTRL-C in a terminal must not stop it before it has left the fleet.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, command: Sequence[str]) -> EngineProcess:
        """Start ``command``; raises ``OSError`` if that is not possible."""
        process = await asyncio.create_subprocess_exec(*command, start_new_session=True)
        logger.info("%s has started as process %d", command[0], process.pid)
        return cls(process)

    async def ended(self) -> int:
        """Wait for its end; returns its exit code, or 128 and the number of the signal that ended it, as shells do."""
        code = await self._process.wait()
        return code if code >= 0 else 128 - code

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it has not ended."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)
