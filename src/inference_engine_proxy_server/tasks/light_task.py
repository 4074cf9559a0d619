"""A cheaper ``asyncio.Task`` for the coroutine of one request.

The event loop registers each task and schedules it for its next iteration at least twice, which is a fifth of the cost
of a short request. A light task starts immediately, and a coroutine that waits for a :class:`Completion` resumes within
the call that completes it.

Code in a light task has no current task. Anything that needs one (``asyncio.timeout``, all of anyio) must be awaited as
a separate task.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from typing import Any, Generic, Protocol, TypeVar, cast

__all__ = ["Completion", "LightTask"]

T = TypeVar("T")


class Awaited(Protocol):
    """An object that a coroutine may wait for: a future, or something like one."""

    _asyncio_future_blocking: bool

    def add_done_callback(self, callback: Callable[[Any], None], /) -> object:
        """Call ``callback`` when the object is done."""

    def cancel(self) -> bool:
        """Cancel the object; ``False`` if it was already done."""


class LightTask:
    """Runs a coroutine without an ``asyncio.Task``.

    Args:
        coroutine: the coroutine to run.
        on_end: called with this task and the coroutine's exception, or ``None`` if the coroutine returned.
    """

    __slots__ = ("_awaited", "_coroutine", "_must_cancel", "_on_end")

    def __init__(
        self, coroutine: Coroutine[Any, None, None], on_end: Callable[[LightTask, BaseException | None], None]
    ) -> None:
        self._coroutine = coroutine
        self._on_end = on_end
        self._awaited: Awaited | None = None
        self._must_cancel = False

    def run(self, _done: object = None) -> None:
        """Run the coroutine until it waits or ends. Called once to start it; later when what it waits for is done."""
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
            if awaited is None:  # asyncio.sleep(0) yields None to let other tasks run first
                asyncio.get_running_loop().call_soon(self.run)
                return
            # As asyncio.Task does, to confirm to the future that its await has reached a task.
            awaited._asyncio_future_blocking = False  # noqa: SLF001 - asyncio recognises futures by this very name
            self._awaited = awaited
            awaited.add_done_callback(self.run)
            if self._must_cancel and awaited.cancel():
                self._must_cancel = False

    def cancel(self, msg: object = None) -> None:
        """Raise ``CancelledError`` in the coroutine, soon, at the point where it waits.

        Args:
            msg: ignored; exists for compatibility with ``asyncio.Task``.
        """
        del msg
        if self._awaited is None or not self._awaited.cancel():
            self._must_cancel = True  # the coroutine is about to resume


class Completion(Generic[T]):
    """A future for a single waiter, which resumes immediately.

    The waiter resumes within :meth:`set_result`, so that call must be its caller's last action. Failures are delivered
    in the loop's next iteration, as with ordinary futures, because they can originate in the middle of any code.

    An ``asyncio.Task`` may also wait for a completion, unless it is completed from within a running task.
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
        return self._result if self._error is None else self.result()  # type: ignore[return-value]

    def done(self) -> bool:
        """Whether the result or an exception has been set."""
        return self._is_done

    def result(self) -> T:
        """The result; raises the exception if one was set. Must be called once only."""
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # its traceback refers to this object: a cycle, which would live until a collection
        return cast(T, self._result)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The running event loop."""
        return asyncio.get_running_loop()

    def add_done_callback(self, callback: Callable[[Completion[T]], object], /, *, context: object = None) -> None:
        """Set the waiter's callback.

        Args:
            callback: called when the completion is done.
            context: ignored; exists for compatibility with ``asyncio.Future``.
        """
        del context
        self._callback = callback

    def set_result(self, result: T) -> None:
        """Complete with ``result``, and resume the waiter immediately."""
        self._result = result
        self._is_done = True
        if self._callback is not None:
            self._callback(self)

    def set_exception(self, error: BaseException) -> None:
        """Complete with ``error``, and resume the waiter in the loop's next iteration."""
        self._error = error
        self._is_done = True
        if self._callback is not None:
            asyncio.get_running_loop().call_soon(self._callback, self)

    def cancel(self, msg: object = None) -> bool:
        """Complete with ``CancelledError``; ``False`` if already done."""
        del msg
        if self._is_done:
            return False
        self.set_exception(asyncio.CancelledError())
        return True
