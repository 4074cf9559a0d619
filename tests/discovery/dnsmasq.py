"""A real dnsmasq with the records of a test."""

from __future__ import annotations

import getpass
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from support.ports import free_port

__all__ = ["Dnsmasq"]

_SECONDS = 20.0


class Dnsmasq:
    """A dnsmasq on 127.0.0.1, ready when the constructor returns.

    Args:
        folder: for its files.
        hosts: addresses by name.
        ttl: of all records, in seconds.
        options: further ones, such as ``--srv-host=_llm._tcp.test,one.test,8080``.
    """

    def __init__(self, folder: Path, hosts: Mapping[str, Sequence[str]], *options: str, ttl: int = 1) -> None:
        self._hosts, self._log = folder / "hosts", folder / "dnsmasq.log"
        self._options = (f"--local-ttl={ttl}", *options)
        self._port = free_port()
        self._write(hosts)
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()

    @property
    def address(self) -> str:
        """As in the query of a lookup's URL."""
        return f"127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it again after :meth:`kill`, on the same port."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts",
                    "--pid-file=", f"--port={self._port}", "--listen-address=127.0.0.1", "--bind-interfaces",
                    "--local=/test/", f"--addn-hosts={self._hosts}",
                    f"--user={getpass.getuser()}",
                    "--log-facility=-", *self._options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + _SECONDS
        while not self._accepts():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.02)

    def set(self, hosts: Mapping[str, Sequence[str]]) -> None:
        """Replace all addresses, now or for the next start."""
        self._write(hosts)
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGHUP)

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()

    def _write(self, hosts: Mapping[str, Sequence[str]]) -> None:
        lines = [f"{address} {name}\n" for name, addresses in hosts.items() for address in addresses]
        self._hosts.write_text("".join(lines))

    def _accepts(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0
