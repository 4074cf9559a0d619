"""A machine whose first process is a real systemd, with the unit files of deploy/systemd. See machine.sh."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from systemd.versions import FOLDERS, Versions

__all__ = ["LIBRARIES", "UNITS", "Machine", "machine"]

UNITS = Path(__file__).parents[2] / "deploy/systemd"
_SCRIPT = Path(__file__).with_name("machine.sh")
# Not where they are: ProtectHome and PrivateTmp hide home directories and /tmp.
_PYTHON, _PACKAGES = "/opt/python", ("/opt/source", "/opt/packages")
LIBRARIES = f"LD_LIBRARY_PATH={_PYTHON}/lib"
"""The variable by which the interpreter finds its own libraries."""

_START_SECONDS = 30.0
# Those that other units need; a usual machine has them.
_TARGETS = ("sysinit", "basic", "sockets", "network-online", "network", "multi-user", "shutdown", "umount", "final")


class Machine:
    """The machine.

    Attributes:
        versions: installed in /opt/inference-proxy.
        settings: the folder /etc/inference-proxy.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._units, self._out = folder / "units", folder / "out"
        self.settings = folder / "settings"
        for one in (self._units, self._out, self.settings):
            one.mkdir(parents=True)
        for name in _TARGETS:
            self.add_unit(f"{name}.target", "[Unit]\nDefaultDependencies=no\n")
        for unit in UNITS.iterdir():
            self.add_unit(unit.name, unit.read_text())
        self.versions = Versions(folder / "versions", f"{_PYTHON}/bin/python3", _PACKAGES)
        self._cgroup = _cgroup_root() / f"inference-proxy-test-{os.getpid()}-{time.monotonic_ns()}"
        self._process: subprocess.Popen[bytes]
        self._first = 0

    def add_unit(self, name: str, text: str) -> None:
        """Write a unit file."""
        path = self._units / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def change_unit(self, name: str, text: str) -> None:
        """Write a drop-in, as `systemctl edit` does."""
        self.add_unit(f"{name}.d/test.conf", text)

    def start(self) -> None:
        """Start systemd, and wait until it obeys."""
        self._cgroup.mkdir()
        enter = f'echo $$ > "{self._cgroup}/cgroup.procs"; exec "$@"'
        versions = self._folder / "versions"
        folders = [f"{_PYTHON}={sys.base_prefix}", f"/opt/inference-proxy={versions}"]
        folders += [f"{path}={source}" for path, source in zip(_PACKAGES, FOLDERS, strict=True)]
        with (self._out / "machine").open("wb") as log:
            self._process = subprocess.Popen(
                ["bash", "-c", enter, "bash", str(_SCRIPT), str(self._folder), "basic.target", *folders],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        deadline = time.monotonic() + _START_SECONDS
        while not self._is_up():
            assert self._process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)

    def _is_up(self) -> bool:
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        if not children:
            return False
        self._first = int(children[0])
        return self.systemctl("is-active", "basic.target", check=False) == "active"

    @property
    def log(self) -> str:
        """What systemd and the services have written."""
        return "".join(path.read_text() for path in sorted(self._out.iterdir()))

    def systemctl(self, *arguments: str, check: bool = True) -> str:
        """Run systemctl in the machine; returns its output."""
        enter = ["nsenter", f"--target={self._first}", "--mount", "--pid", "--cgroup"]
        command = [*enter, "systemctl", "--no-pager", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        if check and done.returncode != 0:
            units = self.systemctl("status", *arguments[1:], check=False)
            raise AssertionError(f"{arguments}: {done.stdout}{done.stderr}\n{units}\n{self.log}")
        return done.stdout.strip()

    def show(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.systemctl("show", "--property", name, "--value", unit)

    def children(self, pid: int) -> set[int]:
        """The child processes of a process in the machine, with their process ids in the namespace of the tests."""
        outside = self.pid_outside(pid)
        return set(map(int, Path(f"/proc/{outside}/task/{outside}/children").read_text().split()))

    def pid_outside(self, pid: int) -> int:
        """The process id, in the namespace of the tests, of a process in the machine."""
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError, StopIteration):
                ids = next(line for line in (entry / "status").read_text().splitlines() if line.startswith("NSpid:"))
                is_here = (entry / "ns/pid").readlink() == Path(f"/proc/{self._first}/ns/pid").readlink()
                if is_here and int(ids.split()[-1]) == pid:
                    return int(entry.name)
        raise AssertionError(f"no process {pid}")

    def stop(self) -> None:
        """End all of its processes at once."""
        if self._first:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._first, signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        for group in sorted(self._cgroup.rglob("*"), reverse=True):
            if group.is_dir():
                _remove(group)
        _remove(self._cgroup)


def _cgroup_root() -> Path:
    """Where cgroups of version 2 are."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 "):
            return Path(before.split()[4])
    raise AssertionError("no cgroup2 file system is mounted")


def _remove(group: Path) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            group.rmdir()
        except OSError:  # its processes are still ending
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


@contextmanager
def machine(folder: Path) -> Iterator[Machine]:
    """A machine that is not started yet; stopped at the end."""
    one = Machine(folder)
    try:
        yield one
    finally:
        one.stop()
