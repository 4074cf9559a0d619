"""What the supervisor and a worker tell each other: a word and what it is about, over a pair of sockets."""

from __future__ import annotations

import contextlib
import socket

__all__ = ["DRAIN", "SERVING", "SIGNAL", "UNDRAIN", "WATCHED", "Channel"]

SIGNAL = "signal"
"""To a worker: act as after the signal of this number."""
SERVING = "serving"
"""From a worker: it accepts connections."""
DRAIN, UNDRAIN = "drain", "undrain"
"""An operator's order about the backend of this base URL: from the worker that got it, and then to all."""
WATCHED = "watched"
"""Somebody asks one worker whether it is ready, and means all; it takes the same way."""

_LONGEST_BYTES = 65_536


class Channel:
    """One end.

    Args:
        end: of a pair of ``SOCK_SEQPACKET`` sockets, which keep each message whole.
    """

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Both ends of a new one."""
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(one), cls(other)

    def fileno(self) -> int:
        """For who waits until there is something to hear."""
        return self._end.fileno()

    def tell(self, word: str, about: str = "") -> None:
        """Send a message. To who has gone, or has not listened for thousands of messages, nothing can be told."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            self._end.send(f"{word} {about}".encode())

    def hear(self) -> list[tuple[str, str]] | None:
        """The messages that have come, perhaps none; ``None``: the other end has been closed."""
        messages: list[tuple[str, str]] = []
        while True:
            try:
                packet = self._end.recv(_LONGEST_BYTES)
            except BlockingIOError:
                return messages
            except ConnectionResetError:  # it went without having heard all
                packet = b""
            if not packet:
                return messages or None
            word, _, about = packet.decode().partition(" ")
            messages.append((word, about))

    def close(self) -> None:
        """Be heard of no more."""
        self._end.close()
