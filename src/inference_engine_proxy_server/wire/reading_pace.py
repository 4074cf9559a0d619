"""Whether a client takes what is sent to it."""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import termios

from inference_engine_proxy_server.tasks.deadlines import NEVER

__all__ = ["ReadingPace"]

_LEAST_BYTES = 16 * 1024  # to be taken in each period by who is behind; in a minute that is 2 kbit/s, a modem's share


class ReadingPace:
    """Watches a client while it is behind; who keeps up, as readers of tokens do, is not watched at all.

    What counts is what has left this machine, not what its kernel has taken: that may be megabytes at a time, and then
    nothing for minutes, however steadily a slow client reads.

    Args:
        transport: the client's connection.
        period_seconds: in which it must take a little.

    Attributes:
        is_behind: it is being watched.
        deadline: when to look again.
    """

    __slots__ = ("_period_seconds", "_transport", "_unsent_bytes", "deadline", "is_behind")

    def __init__(self, transport: asyncio.Transport, period_seconds: float) -> None:
        self._transport = transport
        self._period_seconds = period_seconds
        self._unsent_bytes = 0
        self.is_behind = False
        self.deadline = NEVER

    def watch(self, now: float) -> None:
        """From now on it must take a little of what waits for it in each period."""
        self._unsent_bytes = self._count_unsent()
        self.is_behind = True
        self.deadline = now + self._period_seconds

    def forget(self) -> None:
        """It keeps up."""
        self.is_behind = False

    def goes_on(self, now: float) -> bool:
        """Whether it took enough since the last look, so that it may go on; it then has another period."""
        unsent_bytes = self._count_unsent()
        taken = self._unsent_bytes - unsent_bytes
        if taken < _LEAST_BYTES:
            return False
        self._unsent_bytes = unsent_bytes
        self.deadline = now + self._period_seconds
        return True

    def _count_unsent(self) -> int:
        in_kernel = array.array("i", [0])
        with contextlib.suppress(OSError, ValueError):  # it is closed, and what it still has to send is the kernel's
            fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, in_kernel)
        return in_kernel[0] + self._transport.get_write_buffer_size()
