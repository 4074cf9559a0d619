"""TCP ports of 127.0.0.1 that no other test run uses and the system assigns to no socket."""

from __future__ import annotations

import fcntl
import itertools
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["free_port", "unused_url"]

# Below the range of Linux for client ports and "port 0": net.ipv4.ip_local_port_range, from 32768.
_FIRST, _LAST = 12_000, 32_000
_BLOCK_PORTS = 100


def free_port() -> int:
    """A free port, which is returned again only after all others of this process."""
    return next(_ports)


def unused_url() -> str:
    """A base URL that refuses connections."""
    return f"http://127.0.0.1:{free_port()}"


def _free_ports() -> Iterator[int]:
    for port in itertools.cycle(range(_FIRST_OWN, _FIRST_OWN + _BLOCK_PORTS)):
        with socket.socket() as probe:
            probe.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # as servers do, so that TIME_WAIT is no obstacle
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        yield port


def _reserve_block() -> int:
    """The first port of a block that this process reserves until it ends, by a file lock."""
    for first in range(_FIRST, _LAST, _BLOCK_PORTS):
        lock = os.open(Path(tempfile.gettempdir(), f"test-ports-{first}.lock"), os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        return first  # the file stays open, and so locked, until the process ends
    raise RuntimeError(f"all ports from {_FIRST} to {_LAST} are reserved by other test runs")


_FIRST_OWN = _reserve_block()  # at import: a test that counts open files must not see the lock file appear
_ports = _free_ports()
