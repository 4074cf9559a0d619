"""An engine that runs in a process of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from support.http_client import send
from support.ports import free_port
from support.waiting import eventually

__all__ = ["EngineProcess", "running", "write_model"]

_START_SECONDS = 300.0  # with all cores busy; alone, it takes some seconds


class EngineProcess:
    """The process, which may still be starting.

    Args:
        command: the command for a port.
        log: file of its output.
    """

    def __init__(self, command: Callable[[int], Sequence[str]], log: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(log.parent / "cache"), "DO_NOT_TRACK": "1"}
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command(port),
                env=os.environ | offline | {"OMP_NUM_THREADS": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
                # Not a session of its own: Linux would schedule that as one group.
                process_group=0,
            )

    async def is_up(self) -> bool:
        """Whether it answers ``/health`` with 200."""
        assert self._process.poll() is None, self._log.read_text()[-3000:]
        try:
            return (await send(self.url, "/health")).status == 200
        except OSError:
            return False

    async def starts(self) -> None:
        """Wait until it is up."""
        await eventually(self.is_up, _START_SECONDS)

    def kill(self) -> None:
        """Kill it at once."""
        self._process.kill()
        self._process.wait()


@contextmanager
def running(count: int, command: Callable[[int], Sequence[str]], folder: Path) -> Iterator[list[EngineProcess]]:
    """``count`` engines with the same command, which start at once."""
    with ExitStack() as stack:
        engines = []
        for number in range(count):
            engines.append(EngineProcess(command, folder / f"engine-{number}.log"))
            stack.callback(engines[-1].kill)
        yield engines


def write_model(python: str, kind: str, folder: Path) -> Path:
    """A tiny model of ``kind``, written by the engine's own Python."""
    directory = folder / kind
    subprocess.run([python, Path(__file__).with_name("tiny_models.py"), kind, directory], check=True)
    return directory
