"""Tells systemd what this process does: sd_notify(3), with the watchdog of sd_watchdog_enabled(3).

Without ``NOTIFY_SOCKET`` in the environment, nothing is sent. A message is a datagram of lines ``NAME=VALUE``.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Mapping

__all__ = ["STOP_MARGIN_SECONDS", "ServiceManager"]

STOP_MARGIN_SECONDS = 60.0
"""What a stop may take after the last request."""

_MOST_STATUS_CHARACTERS = 500  # of one line


class ServiceManager:
    """The manager of this service.

    Args:
        address: of its datagram socket: a path, or a name that begins with ``@``; empty if there is no manager.
        watchdog_seconds: it restarts the service after this time without a sign of life; ``None``: it does not.
    """

    def __init__(self, address: str = "", watchdog_seconds: float | None = None) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._status = ""
        self.watchdog_seconds = watchdog_seconds if address else None

    @classmethod
    def of(cls, environ: Mapping[str, str], pid: int) -> ServiceManager:
        """The manager that ``environ`` names; a watchdog that is meant for another process than ``pid`` is none."""
        micros = environ.get("WATCHDOG_USEC", "")
        is_ours = environ.get("WATCHDOG_PID", str(pid)) == str(pid)
        has_watchdog = is_ours and micros.isdecimal() and int(micros) > 0
        return cls(environ.get("NOTIFY_SOCKET", ""), int(micros) / 1e6 if has_watchdog else None)

    @property
    def beat_seconds(self) -> float | None:
        """The time between two signs of life: several fit into the watchdog's patience; ``None`` without one."""
        return None if self.watchdog_seconds is None else self.watchdog_seconds / 4

    def ready(self, status: str) -> None:
        """The service serves; also after :meth:`reloading`."""
        self._send("READY=1", status)

    def reloading(self, status: str) -> None:
        """The service applies a change; :meth:`ready` follows, whether it succeeds or not."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}", status)

    def stopping(self, status: str, seconds: float) -> None:
        """The service stops, which may take ``seconds``, whatever ``TimeoutStopSec`` is."""
        self._send(f"STOPPING=1\nEXTEND_TIMEOUT_USEC={int(seconds * 1e6)}", status)

    def report(self, status: str) -> None:
        """What `systemctl status` shows."""
        self._send("", status)

    def is_alive(self) -> None:
        """A sign of life."""
        self._send("WATCHDOG=1")

    def hand_over(self, pid: int, status: str) -> None:
        """The process ``pid`` is the service from now on, and serves; this one has nothing more to report."""
        self._send(f"MAINPID={pid}\nREADY=1", status)
        self._address = ""

    def _send(self, lines: str, status: str = "") -> None:
        if not self._address:
            return
        if status:
            lines = f"{lines}\nSTATUS={' '.join(status.split())[:_MOST_STATUS_CHARACTERS]}".lstrip("\n")
        # A manager that has gone, or does not read, must not disturb the service.
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(lines.encode(), self._address)
