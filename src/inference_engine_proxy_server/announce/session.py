"""The life of an announcer: join, stay, and leave before the engine stops."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

from inference_engine_proxy_server.announce.engine_process import EngineProcess

__all__ = ["Membership", "Session"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

logger = logging.getLogger(__name__)


class Membership(Protocol):
    """What keeps the engine in one fleet, or in several."""

    has_joined: bool
    refused: asyncio.Event

    async def run(self) -> None:
        """Stay in the fleet, until cancelled."""

    async def leave(self, wait_seconds: float, *, moves: bool = False) -> bool:
        """Leave; returns whether the engine can be stopped without harm."""


class Session:
    """Runs until SIGTERM or SIGINT, or until the engine ends.

    Args:
        memberships: each in the fleet of one proxy, or of all that listen.
        command: starts the engine; empty if something else starts it.
        drain_seconds: longest wait for the engine's requests to end.
    """

    def __init__(self, memberships: Sequence[Membership], command: Sequence[str], drain_seconds: float) -> None:
        self._memberships = memberships
        self._command = command
        self._drain_seconds = drain_seconds
        self._stops = [asyncio.Event(), asyncio.Event()]  # by the first and by the second signal

    async def run(self) -> int:
        """Run.

        Returns:
            The exit code: 0 after the engine has left all fleets and finished its requests; 1 if it has not; 2 if no
            proxy accepts the announcement, or the command cannot be started; or that of an engine that ended by itself.
        """
        loop = asyncio.get_running_loop()
        for number in _SIGNALS:
            loop.add_signal_handler(number, self._on_signal)
        engine = None
        if self._command:
            try:
                engine = await EngineProcess.start(self._command)
            except OSError as error:
                logger.error("%s cannot be started: %s", self._command[0], error.strerror or error)
                return 2
        async with _running(one.run() for one in self._memberships):
            why = await self._wait_for_end(engine)
        if why == "engine":
            return await self._end_after(engine)
        if why == "refused":
            await self._stop(engine)
            return 2
        has_left = await self._leave()
        await self._stop(engine)
        return 0 if has_left else 1

    def _on_signal(self) -> None:
        first, second = self._stops
        if first.is_set():
            second.set()
        else:
            logger.info("leaving; a second signal stops at once")
            first.set()

    async def _wait_for_end(self, engine: EngineProcess | None) -> str:
        """Wait for a signal, the end of the engine, or a refusal before any fleet was joined; returns which it was."""
        waits: dict[str, Coroutine[Any, Any, object]] = {"signal": self._stops[0].wait(), "refused": self._refused()}
        if engine is not None:
            waits["engine"] = engine.ended()
        return await _first_of(waits)

    async def _refused(self) -> None:
        """Return when a proxy has refused the announcement for good, and no proxy has ever accepted it.

        If one has, the others may only be configured wrongly for now, and an engine that works must not stop.
        """
        while True:
            await _first_of({str(at): one.refused.wait() for at, one in enumerate(self._memberships)})
            if not any(one.has_joined for one in self._memberships):
                return
            for one in self._memberships:
                one.refused.clear()

    async def _leave(self) -> bool:
        async def leave_all() -> bool:
            return all(await asyncio.gather(*(one.leave(self._drain_seconds) for one in self._memberships)))

        leaving = asyncio.get_running_loop().create_task(leave_all())
        second = asyncio.get_running_loop().create_task(self._stops[1].wait())
        await asyncio.wait({leaving, second}, return_when=asyncio.FIRST_COMPLETED)
        second.cancel()
        if leaving.done():
            return leaving.result()
        leaving.cancel()
        return False

    async def _end_after(self, engine: EngineProcess | None) -> int:
        """The engine has ended: nothing is left to finish, so others take over its requests."""
        code = 0 if engine is None else await engine.ended()
        logger.error("the engine has ended with exit code %d", code)
        await asyncio.gather(*(one.leave(0.0, moves=True) for one in self._memberships))
        return code

    async def _stop(self, engine: EngineProcess | None) -> None:
        """Stop the engine with SIGTERM; at the second signal, with SIGKILL."""
        if engine is None:
            return
        engine.signal(signal.SIGTERM)
        if await _first_of({"engine": engine.ended(), "signal": self._stops[1].wait()}) == "signal":
            engine.signal(signal.SIGKILL)
            await engine.ended()


@asynccontextmanager
async def _running(loops: Any) -> AsyncIterator[None]:
    """Run ``loops`` while the block runs, and wait for their ends."""
    tasks = [asyncio.get_running_loop().create_task(one) for one in loops]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)


async def _first_of(waits: dict[str, Coroutine[Any, Any, object]]) -> str:
    """The name of the coroutine that ends first; the others are cancelled."""
    loop = asyncio.get_running_loop()
    tasks = {loop.create_task(wait): name for name, wait in waits.items()}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[done.pop()]
    finally:
        for task in tasks:
            task.cancel()
