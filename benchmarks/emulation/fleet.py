"""A fleet of emulated engines in a process of its own, as its parent sees it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import IO, cast

import msgspec

from emulation.engine import Intake
from emulation.host import Command, HostPlan, HostReport
from emulation.messages import CHAT_ML, Template
from proxies.proxy import free_ports
from simulation.engine_spec import EngineSpec

__all__ = ["Fleet", "running_fleet"]


class Fleet:
    """Running engines; ``ports`` are on 127.0.0.1."""

    def __init__(self, commands: IO[bytes], replies: IO[bytes], plan: HostPlan) -> None:
        self.ports = tuple(plan.ports)
        self._commands = commands
        self._replies = replies
        self._send(plan)

    def leave(self, engine: int) -> None:
        """Make an engine unreachable; it finishes its requests."""
        self._send(Command("leave", engine))

    def come_back(self, engine: int) -> None:
        """Make it reachable again, with an empty cache, when it has finished its requests."""
        self._send(Command("return", engine))

    def report(self) -> HostReport:
        return self._send(Command("report"))

    def _send(self, message: HostPlan | Command) -> HostReport:
        try:
            self._commands.write(msgspec.json.encode(message) + b"\n")
            self._commands.flush()
        except BrokenPipeError:
            raise RuntimeError("the process of the emulated engines has ended") from None
        line = self._replies.readline()
        if not line:
            raise RuntimeError("the process of the emulated engines has ended; its error is above")
        return msgspec.json.decode(line, type=HostReport)


@contextlib.contextmanager
def running_fleet(
    engines: Sequence[EngineSpec],
    model_name: str,
    template: Template = CHAT_ML,
    intakes: Sequence[Intake] | None = None,
    tokens_an_event: int = 16,
) -> Iterator[Fleet]:
    """Start engines with empty caches.

    Args:
        intakes: for each engine; by default, requests take no time before the queue.
        tokens_an_event: number of tokens that each event of a stream has, like vLLM's ``--stream-interval``.

    Raises:
        RuntimeError: they did not start.
    """
    plan = HostPlan(
        list(engines),
        [Intake() for _ in engines] if intakes is None else list(intakes),
        list(free_ports(len(engines))),
        model_name,
        template,
        tokens_an_event,
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "emulation.host"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,  # Ctrl-C reaches only the benchmark, which ends it
    )
    try:
        yield Fleet(cast(IO[bytes], process.stdin), cast(IO[bytes], process.stdout), plan)
    finally:
        process.kill()  # it has nothing to save
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
