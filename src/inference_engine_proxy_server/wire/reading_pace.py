"""Detects clients that have stopped reading their reply."""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import termios

from inference_engine_proxy_server.tasks.deadlines import NEVER

__all__ = ["ReadingPace"]

_LEAST_BYTES = 16 * 1024  # to be read per period by a slow client; in a minute, that is 2 kbit/s, less than any modem


class ReadingPace:
    """Measures a client's reading speed while it is behind. A client that keeps up is not measured.

    Only bytes that the client has acknowledged count, not bytes that the kernel has accepted: the kernel accepts
    megabytes at once and then nothing for minutes, however steadily a slow client reads.

    Args:
        transport: the client's connection.
        period_seconds: the client must read a minimum amount in each period.

    Attributes:
        is_behind: the client is being measured.
        deadline: when the current period ends.
    """

    __slots__ = ("_period_seconds", "_transport", "_unsent_bytes", "deadline", "is_behind")

    def __init__(self, transport: asyncio.Transport, period_seconds: float) -> None:
        self._transport = transport
        self._period_seconds = period_seconds
        self._unsent_bytes = 0
        self.is_behind = False
        self.deadline = NEVER

    def watch(self, now: float) -> None:
        """Start measuring: from now on, the client must read the minimum in each period."""
        self._unsent_bytes = self._count_unsent()
        self.is_behind = True
        self.deadline = now + self._period_seconds

    def forget(self) -> None:
        """Stop measuring: the client has caught up."""
        self.is_behind = False

    def goes_on(self, now: float) -> bool:
        """Whether the client read enough in the period that ends now; if so, start the next period."""
        unsent_bytes = self._count_unsent()
        read_bytes = self._unsent_bytes - unsent_bytes
        if read_bytes < _LEAST_BYTES:
            return False
        self._unsent_bytes = unsent_bytes
        self.deadline = now + self._period_seconds
        return True

    def _count_unsent(self) -> int:
        in_kernel = array.array("i", [0])
        with contextlib.suppress(OSError, ValueError):  # the socket is closed; the kernel sends the rest on its own
            fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, in_kernel)
        return in_kernel[0] + self._transport.get_write_buffer_size()
