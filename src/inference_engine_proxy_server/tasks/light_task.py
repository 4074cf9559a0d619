"""Runs the coroutine of one request for less than what an ``asyncio.Task`` costs.

A task is entered into the loop's books, and has its turn in the loop's next round, at least twice: a fifth of what a
short request costs. A light task begins at once, and where it waits for a :class:`Completion` it goes on within the
call that completes it.

What runs in one has no current task. Whatever asks for that (``asyncio.timeout``, all of anyio) must be awaited as a
task of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, Protocol, TypeVar, cast

__all__ = ["Completion", "LightTask"]

T = TypeVar("T")


class Awaited(Protocol):
    """What a coroutine may wait for: a future, or something like one."""

    _asyncio_future_blocking: bool

    def add_done_callback(self, callback: Callable[[Any], None], /) -> object:
        """Call ``callback`` when it is done."""

    def cancel(self) -> bool:
        """Whether it was not done yet, and is now."""


class LightTask:
    """Runs ``coroutine``.

    Args:
        coroutine: what is run.
        on_end: told of the task when it has ended, and of what it raised; ``None``: it returned.
    """

    __slots__ = ("_awaited", "_coroutine", "_must_cancel", "_on_end")

    def __init__(
        self, coroutine: Coroutine[Any, None, None], on_end: Callable[[LightTask, BaseException | None], None]
    ) -> None:
        self._coroutine = coroutine
        self._on_end = on_end
        self._awaited: Awaited | None = None
        self._must_cancel = False

    def start(self) -> None:
        """Run it as far as it goes."""
        self._go_on(None)

    def cancel(self, msg: object = None) -> None:
        """Raise ``CancelledError`` where it waits, soon; as of a task, ``msg`` says why and is not used."""
        del msg
        if self._awaited is None or not self._awaited.cancel():
            self._must_cancel = True  # it is about to go on

    def _go_on(self, done: object) -> None:
        del done
        self._awaited = None
        try:
            if self._must_cancel:
                self._must_cancel = False
                awaited = self._coroutine.throw(asyncio.CancelledError())
            else:
                awaited = self._coroutine.send(None)
        except StopIteration:
            self._on_end(self, None)
        except (Exception, asyncio.CancelledError) as error:
            self._on_end(self, error)
        else:
            self._wait_for(awaited)

    def _wait_for(self, awaited: Awaited | None) -> None:
        if awaited is None:  # as asyncio.sleep(0) does: it only lets others go first
            asyncio.get_running_loop().call_soon(self._go_on, None)
            return
        # As a task does: it says to a future that its await has come to who waits for it.
        awaited._asyncio_future_blocking = False  # noqa: SLF001 - the very name by which futures are known
        self._awaited = awaited
        awaited.add_done_callback(self._go_on)
        if self._must_cancel and awaited.cancel():
            self._must_cancel = False


class Completion(Generic[T]):
    """A result that will come, for one who waits for it; like a future, but that who waits goes on at once.

    Who waits goes on within :meth:`set_result`, so that must be the last thing that its caller does. Failures are told
    in the loop's next round, as a future tells everything: they come from within anything.

    An ``asyncio.Task`` may wait for it, too, unless it completes within a task's turn.
    """

    __slots__ = ("_asyncio_future_blocking", "_callback", "_error", "_is_done", "_result")

    def __init__(self) -> None:
        self._callback: Callable[[Completion[T]], object] | None = None
        self._error: BaseException | None = None
        self._result: T | None = None
        self._is_done = False
        self._asyncio_future_blocking = False

    def __await__(self) -> Generator[Completion[T], None, T]:
        if not self._is_done:
            self._asyncio_future_blocking = True
            yield self
        return self.result()

    def done(self) -> bool:
        """Whether it has come, or never will."""
        return self._is_done

    def result(self) -> T:
        """What has come. Raises what it failed with."""
        if self._error is not None:
            raise self._error
        return cast(T, self._result)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The loop that runs."""
        return asyncio.get_running_loop()

    def add_done_callback(self, callback: Callable[[Completion[T]], object], /, *, context: object = None) -> None:
        """Call ``callback``, that of the one who waits, when it is done; ``context`` is the loop's, and stays so."""
        del context
        self._callback = callback

    def set_result(self, result: T) -> None:
        """It is there."""
        self._result = result
        self._is_done = True
        if self._callback is not None:
            self._callback(self)

    def set_exception(self, error: BaseException) -> None:
        """It will not come."""
        self._error = error
        self._is_done = True
        if self._callback is not None:
            asyncio.get_running_loop().call_soon(self._callback, self)

    def cancel(self, msg: object = None) -> bool:
        """Nobody wants it any more. Whether it had not come yet."""
        del msg
        if self._is_done:
            return False
        self.set_exception(asyncio.CancelledError())
        return True
