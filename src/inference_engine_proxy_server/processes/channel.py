"""Message channel between the supervisor and one worker, and between a program and the one that replaces it.

A message is a word and its argument, sent over a pair of sockets.
"""

from __future__ import annotations

import contextlib
import socket

__all__ = [
    "ALIVE",
    "DRAIN",
    "HANDED_OVER",
    "JOINED",
    "LEFT",
    "LONGEST_BYTES",
    "MOVE",
    "READINESS_PROBED",
    "RELOADED",
    "ROSTER",
    "SERVING",
    "SIGNAL",
    "UNDRAIN",
    "Channel",
]

SIGNAL = "signal"
"""To a worker: act as if it had received the signal with this number."""
SERVING = "serving"
"""From a worker, or from a program that replaces the running one: it accepts connections."""
HANDED_OVER = "handed_over"
"""To the new program: it is the service now. To a worker of the old one: another program serves the port."""
ALIVE = "alive"
"""From a worker: its event loop runs. Sent only where a service manager watches."""
RELOADED = "reloaded"
"""From a worker: it has read the settings again."""
DRAIN, UNDRAIN, MOVE = "drain", "undrain", "move"
"""An operator's command for the backend with this base URL; to move is to drain, and to continue its streams elsewhere.
The worker that received the command sends it to the supervisor, which sends it to all workers."""
ROSTER = "roster"
"""A change of the backends that joined while the proxy runs. Sent to the supervisor, and from there to all workers."""
JOINED, LEFT = "joined", "left"
"""From a worker: the backend with this base URL is new in its fleet, or no longer there."""
READINESS_PROBED = "watched"
"""A load balancer or orchestrator has probed one worker's readiness. Sent in the same way as a command."""

LONGEST_BYTES = 65_536
"""The longest message."""


class Channel:
    """One end of the channel.

    Args:
        end: one of a pair of ``SOCK_SEQPACKET`` sockets, which preserve message boundaries.
    """

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._end = end

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Both ends of a new channel."""
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(one), cls(other)

    def fileno(self) -> int:
        """The descriptor to wait on until messages arrive."""
        return self._end.fileno()

    def send(self, word: str, argument: str = "") -> None:
        """Send a message; dropped if the other end is closed or has not read for thousands of messages."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            self._end.send(f"{word} {argument}".encode())

    def receive(self) -> list[tuple[str, str]] | None:
        """The messages that have arrived, possibly none; ``None`` if the other end is closed."""
        messages: list[tuple[str, str]] = []
        while True:
            try:
                packet = self._end.recv(LONGEST_BYTES)
            except BlockingIOError:
                return messages
            except ConnectionResetError:  # the other end was closed with unread messages
                packet = b""
            if not packet:
                return messages or None
            word, _, argument = packet.decode().partition(" ")
            messages.append((word, argument))

    def close(self) -> None:
        """Close this end."""
        self._end.close()
