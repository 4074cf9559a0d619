"""What a proxy of the benchmarks is, and how one is set up for the engines of one measurement."""

from __future__ import annotations

import contextlib
import random
import re
import shutil
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Proxy", "Site", "free_port", "free_ports", "virtual_environment"]

_CHECKOUT = Path(__file__).parents[2]
_CONFIGURATIONS = Path(__file__).with_name("configurations")


@dataclass(frozen=True, slots=True)
class Site:
    """Where a proxy is to run.

    Attributes:
        folder: an empty one for its files.
        engines: ports of the engines on 127.0.0.1.
    """

    folder: Path
    port: int
    engines: tuple[int, ...]

    @property
    def engine_urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self.engines]

    def configured(self, name: str) -> Path:
        """One of our configuration files, filled in: the line with an engine stands there once for each of them."""
        lines = []
        for line in (_CONFIGURATIONS / name).read_text().splitlines(keepends=True):
            filled = line.replace("@FOLDER@", str(self.folder)).replace("@PORT@", str(self.port))
            engines = self.engines if "@ENGINE@" in line else self.engines[:1]
            lines += [filled.replace("@ENGINE@", str(port)) for port in engines]
        file = self.folder / name
        file.write_text("".join(lines))
        return file


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy as it is set up for a benchmark.

    Attributes:
        program: its name, or a path; where it is in no ``environment``, the PATH is searched for a name.
        arguments: for the program.
        environment: virtual environment that has it: the name of a file of ``benchmarks/requirements``.
        package: distribution in it whose version is the proxy's.
        version_arguments: what the program tells its version for, where there is no ``package``.
        settings: for the environment of its process.
    """

    program: str
    arguments: Callable[[Site], list[str]]
    environment: str | None = None
    package: str | None = None
    version_arguments: tuple[str, ...] = ("-v",)
    settings: Callable[[Site], dict[str, str]] = lambda _: {}

    @property
    def path(self) -> str | None:
        """``None``: it is not installed here."""
        folder = None if self.environment is None else str(virtual_environment(self.environment) / "bin")
        return shutil.which(self.program, path=folder)

    def command(self, site: Site) -> list[str]:
        """Raises RuntimeError where it is not installed."""
        if self.path is None:
            raise RuntimeError(f"{self.program} is not installed")
        return [self.path, *self.arguments(site)]

    def version(self) -> str:
        """Its number; empty where it does not say one."""
        if self.path is None:
            return ""
        if self.environment is not None and self.package is not None:
            code = f"from importlib.metadata import version; print(version({self.package!r}))"
            command = [str(virtual_environment(self.environment) / "bin" / "python"), "-c", code]
        else:
            command = [self.path, *self.version_arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        number = re.search(r"\d+\.\d+[\w.+-]*", done.stdout + done.stderr)
        return number[0] if number else ""


def virtual_environment(name: str) -> Path:
    """Where benchmarks/peers.sh puts what a file of ``benchmarks/requirements`` asks for."""
    return _CHECKOUT / f".venv-bench-{name}"


def free_port() -> int:
    return free_ports(1)[0]


def free_ports(count: int) -> tuple[int, ...]:
    """Below the range from which the kernel takes the local ports of connections: none can take that of a dead engine.

    Raises:
        RuntimeError: there are not as many.
    """
    ports: list[int] = []
    for port in random.sample(range(10_000, 32_000), 2 * count + 100):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports.append(port)
        if len(ports) == count:
            return tuple(ports)
    raise RuntimeError(f"fewer than {count} free ports between 10000 and 32000")
