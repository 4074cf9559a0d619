"""A process with many emulated engines.

``python -m emulation.host`` reads a :class:`HostPlan` as a line of JSON from its standard input, and answers with a
line once all engines listen. Each further line is a :class:`Command`, which it also answers with a line. It ends with
its standard input.
"""

from __future__ import annotations

import asyncio
import resource
import sys
from dataclasses import dataclass
from typing import Any

import msgspec
import uvloop

from emulation.api import EngineApi
from emulation.clock import RealTime
from emulation.engine import EmulatedEngine, Intake
from emulation.http_server import Listener
from emulation.llamacpp_api import LlamaCppApi
from emulation.messages import Template
from emulation.vllm_api import VllmApi
from simulation.engine_spec import EngineSpec

__all__ = ["Command", "HostPlan", "HostReport", "Hosted"]

_VLLM_CONTEXT = 40_960  # Qwen3-32B, the model whose speeds are emulated
_IDLE_CHECK_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class HostPlan:
    """The engines of a process; ``ports`` and ``intakes`` are in the same order."""

    engines: list[EngineSpec]
    intakes: list[Intake]
    ports: list[int]
    model_name: str
    template: Template
    tokens_an_event: int


class Command(msgspec.Struct):
    """What to do: "report", or "leave" or "return" with the number of an ``engine``."""

    name: str
    engine: int = 0


class HostReport(msgspec.Struct):
    """The process so far.

    Attributes:
        cpu_seconds: its user and system time.
        delays_ms: number of times that its events ran late, by milliseconds.
    """

    cpu_seconds: float
    delays_ms: dict[int, int]

    def late_ms(self, part: float) -> float:
        """The delay that at least the fraction ``part`` of the events did not exceed."""
        left = part * sum(self.delays_ms.values())
        for milliseconds, count in sorted(self.delays_ms.items()):
            left -= count
            if left <= 0:
                return milliseconds + 1.0
        return 0.0


class Hosted:
    """The engines of a plan, and their listeners."""

    def __init__(self, plan: HostPlan) -> None:
        self.clock = RealTime(asyncio.get_running_loop())
        self.engines = [
            EmulatedEngine(number, spec, _api(spec, plan), self.clock, intake, plan.tokens_an_event)
            for number, (spec, intake) in enumerate(zip(plan.engines, plan.intakes, strict=True))
        ]
        self.listeners = [
            Listener(engine.handle, engine.api.habits, port)
            for engine, port in zip(self.engines, plan.ports, strict=True)
        ]

    async def open(self) -> None:
        """Listen. Raises OSError if a port is taken."""
        for listener in self.listeners:
            await listener.open()

    def close(self) -> None:
        """Refuse new connections."""
        for listener in self.listeners:
            listener.close()

    async def obey(self, command: Command) -> HostReport:
        """Execute a command."""
        if command.name == "leave":
            self.listeners[command.engine].close()
        elif command.name == "return":
            await self._come_back(command.engine)
        used = resource.getrusage(resource.RUSAGE_SELF)
        return HostReport(used.ru_utime + used.ru_stime, dict(self.clock.delays))

    async def _come_back(self, number: int) -> None:
        """Listen again with an empty cache, after the last request is done."""
        model = self.engines[number].model
        while model.processing or model.waiting:  # noqa: ASYNC110 -- the model, which virtual time shares, has no events
            await asyncio.sleep(_IDLE_CHECK_SECONDS)
        model.forget()
        await self.listeners[number].open()


def _api(spec: EngineSpec, plan: HostPlan) -> EngineApi:
    if spec.llamacpp is not None:
        return LlamaCppApi(plan.model_name, plan.template, spec.llamacpp.slot_context)
    return VllmApi(plan.model_name, plan.template, _VLLM_CONTEXT)


async def _serve() -> None:
    lines = asyncio.StreamReader(limit=1 << 20)
    protocol: Any = asyncio.StreamReaderProtocol(lines)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    hosted = Hosted(msgspec.json.decode(await lines.readline(), type=HostPlan))
    await hosted.open()
    _answer(await hosted.obey(Command("report")))
    while line := await lines.readline():
        _answer(await hosted.obey(msgspec.json.decode(line, type=Command)))


def _answer(report: HostReport) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    uvloop.run(_serve())
