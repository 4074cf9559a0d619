"""Definition of a proxy under test, and its configuration for the engines of one measurement."""

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
    """The environment of one proxy process.

    Attributes:
        folder: an empty folder for its files.
        engines: ports of the engines on 127.0.0.1.
    """

    folder: Path
    port: int
    engines: tuple[int, ...]

    @property
    def engine_urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self.engines]

    def configured(self, name: str) -> Path:
        """Fill in a configuration file from ``configurations/``: its engine line is repeated for each engine."""
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
    """A proxy and its configuration for a benchmark.

    Attributes:
        program: name or path; a name is searched for in ``environment`` or else on the PATH.
        arguments: for the program.
        environment: its virtual environment, named after a file in ``benchmarks/requirements``.
        package: distribution in the environment whose version is reported.
        version_arguments: arguments that print the version, if there is no ``package``.
        settings: environment variables of its process.
    """

    program: str
    arguments: Callable[[Site], list[str]]
    environment: str | None = None
    package: str | None = None
    version_arguments: tuple[str, ...] = ("-v",)
    settings: Callable[[Site], dict[str, str]] = lambda _: {}

    @property
    def path(self) -> str | None:
        """Path of the program; ``None`` if it is not installed."""
        folder = None if self.environment is None else str(virtual_environment(self.environment) / "bin")
        return shutil.which(self.program, path=folder)

    def command(self, site: Site) -> list[str]:
        """The command line. Raises RuntimeError if the proxy is not installed."""
        if self.path is None:
            raise RuntimeError(f"{self.program} is not installed")
        return [self.path, *self.arguments(site)]

    def version(self) -> str:
        """Version number; empty if unknown."""
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
    """The environment that benchmarks/peers.sh creates for a file in ``benchmarks/requirements``."""
    return _CHECKOUT / f".venv-bench-{name}"


def free_port() -> int:
    return free_ports(1)[0]


def free_ports(count: int) -> tuple[int, ...]:
    """Free ports below the kernel's ephemeral range, so that no connection can take the port of a dead engine.

    Raises:
        RuntimeError: there are not enough free ports.
    """
    ports: list[int] = []
    for port in random.sample(range(10_000, 32_000), 2 * count + 100):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            ports.append(port)
        if len(ports) == count:
            return tuple(ports)
    raise RuntimeError(f"fewer than {count} free ports between 10000 and 32000")
