"""Two machines and a client in one network segment, as network namespaces of Linux."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["ADDRESS", "CLIENT", "FIRST", "SECOND", "Segment", "segment"]

CLIENT, FIRST, SECOND, ADDRESS = "10.88.0.1", "10.88.0.11", "10.88.0.12", "10.88.0.10"
"""The client, which also runs the engines; the two machines; the address that the machines share."""
_CLONE_NEWNET = 0x40000000
_BRIDGE = "segment"
_INTERFACE = "eth0"


class Segment:
    """The network segment.

    Args:
        prefix: of the names of its namespaces.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._switch = f"{prefix}-switch"
        self._number = 0

    def build(self) -> None:
        _ip("netns", "add", self._switch)
        _ip("-n", self._switch, "link", "add", _BRIDGE, "type", "bridge")
        _ip("-n", self._switch, "link", "set", _BRIDGE, "up")
        for address in (CLIENT, FIRST, SECOND):
            self._plug_in(address)

    def remove(self) -> None:
        for name in (self._switch, *map(self.name, (CLIENT, FIRST, SECOND))):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", name)

    def name(self, address: str) -> str:
        """The namespace of the machine with this address."""
        return f"{self._prefix}-{address.rpartition('.')[2]}"

    @contextmanager
    def at(self, address: str) -> Iterator[None]:
        """Sockets and processes that this thread creates meanwhile are on that machine."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        inside = os.open(f"/var/run/netns/{self.name(address)}", os.O_RDONLY)
        try:
            _enter(inside)
            yield
        finally:
            _enter(before)
            os.close(before)
            os.close(inside)

    def cut(self, address: str) -> None:
        """Pull the plug of a machine out of the switch; it keeps its link, as behind a broken switch."""
        _ip("-n", self._switch, "link", "set", self._port(address), "nomaster")

    def mend(self, address: str) -> None:
        _ip("-n", self._switch, "link", "set", self._port(address), "master", _BRIDGE)

    def holders(self) -> list[str]:
        """The machines that have the shared address."""
        shown = {one: _ip("-n", self.name(one), "-o", "address", "show", "dev", _INTERFACE) for one in (FIRST, SECOND)}
        return [one for one, text in shown.items() if f" {ADDRESS}/" in text]

    def _port(self, address: str) -> str:
        return f"port{address.rpartition('.')[2]}"

    def _plug_in(self, address: str) -> None:
        name, port = self.name(address), self._port(address)
        _ip("netns", "add", name)
        _ip("-n", self._switch, "link", "add", port, "type", "veth", "peer", "name", _INTERFACE, "netns", name)
        _ip("-n", self._switch, "link", "set", port, "master", _BRIDGE, "up")
        _ip("-n", name, "address", "add", f"{address}/24", "dev", _INTERFACE)
        for interface in ("lo", _INTERFACE):
            _ip("-n", name, "link", "set", interface, "up")


@contextmanager
def segment() -> Iterator[Segment]:
    """A new network segment, which is removed at the end."""
    made = Segment(f"ha{os.getpid()}")
    try:
        made.build()
        yield made
    finally:
        made.remove()


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "cannot enter the network namespace")


def has_namespaces() -> bool:
    """Whether this process may create network namespaces."""
    return os.geteuid() == 0 and Path("/proc/self/ns/net").exists()
