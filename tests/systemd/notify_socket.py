"""The notify socket, as systemd has it."""

from __future__ import annotations

import socket
from pathlib import Path

__all__ = ["NotifySocket"]


class NotifySocket:
    """Hears what a service reports.

    Attributes:
        heard: all messages so far, each by name.
    """

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.heard: list[dict[str, str]] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._socket.setblocking(False)

    def listen(self) -> list[dict[str, str]]:
        """Read what has arrived; returns all messages so far."""
        while True:
            try:
                text = self._socket.recv(65_536).decode()
            except BlockingIOError:
                return self.heard
            self.heard.append(dict(line.split("=", 1) for line in text.splitlines()))

    def has_heard(self, **fields: str) -> bool:
        """Whether a message had these fields."""
        return any(fields.items() <= one.items() for one in self.listen())

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()
