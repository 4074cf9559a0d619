"""An event loop whose clock jumps from event to event: asyncio code runs on it unchanged, without real waiting."""

from __future__ import annotations

import asyncio
import math
from asyncio import _set_running_loop
from collections.abc import Callable, Coroutine
from contextvars import Context
from typing import Any, TypeVar, TypeVarTuple, Unpack

from simulation.events import Events

__all__ = ["VirtualLoop", "virtual_loop"]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


class VirtualLoop(Events, asyncio.AbstractEventLoop):
    """Runs calls one after the other without waiting.

    Supports only what tasks, futures and ``asyncio.sleep`` need; I/O raises ``NotImplementedError``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._failures: list[dict[str, Any]] = []

    def run(self, until: float = math.inf) -> None:
        """Run all calls due by ``until``.

        Raises:
            RuntimeError: a task that no code awaits has failed.
        """
        _set_running_loop(self)
        try:
            super().run(until)
        finally:
            _set_running_loop(None)
        if self._failures:
            raise RuntimeError(str(self._failures))

    # --- methods that asyncio requires

    def call_soon(
        self, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        return self.call_at(self._now, callback, *args, context=context)

    def call_later(
        self, delay: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[Unpack[Ts]], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self.at(when, _run_handle, handle)
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Coroutine[Any, Any, T], **named: Any) -> asyncio.Task[T]:  # type: ignore[override]
        return asyncio.Task(coro, loop=self, **named)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self._failures.append(context)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Nothing to do: a cancelled handle is skipped when due."""


def virtual_loop() -> VirtualLoop:
    """A loop at time 0."""
    return VirtualLoop()  # type: ignore[abstract]


def _run_handle(handle: asyncio.Handle) -> None:
    if not handle.cancelled():
        handle._run()  # noqa: SLF001 -- event loops run handles this way
