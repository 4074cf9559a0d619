"""The measurements taken of every target; :mod:`.figures` extracts figures from their reports."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

from load.generator import ENDLESS, EVENT_PERIOD_US, Load, Report
from suite.lab import Lab, memory_bytes
from suite.search import most_streams, probing
from suite.targets import DIRECT, OURS_NAME, Target

__all__ = ["STEPS", "Step"]

_IDLE_PERIOD_US = 10_000_000
_SETTLE_SECONDS = 4.0  # enough to poll the state of a large fleet once
_WORKERS_LOAD = Load(256, warm_up_seconds=1, seconds=3)  # many: the kernel assigns connections to processes at random
_FLEETS = (OURS_NAME, "nginx")


@dataclass(frozen=True, slots=True)
class Step(ABC):
    """One kind of measurement.

    Attributes:
        rounds: take this step only in the first ``rounds`` rounds; ``None`` for all rounds.
    """

    name: str
    rounds: int | None = None

    @abstractmethod
    def run(self, lab: Lab, target: Target) -> Report:
        """Take the measurement. Raises RuntimeError or OSError if it fails."""

    @abstractmethod
    def seconds(self, target: Target, pace: float) -> float:
        """Estimated duration, without the start of a shared target."""

    def applies_to(self, target: Target) -> bool:
        return target.name != DIRECT


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadStep(Step):
    """A load on targets that have been running for a while.

    Attributes:
        beside_direct: put the load on the engine alone as well, because a figure needs it for comparison.
    """

    load: Load
    beside_direct: bool = False

    def run(self, lab: Lab, target: Target) -> Report:
        return lab.load_shared(target, self._load_for(target))

    def seconds(self, target: Target, pace: float) -> float:
        return self._load_for(target).total_seconds(pace) + 0.5

    def applies_to(self, target: Target) -> bool:
        if target.name == DIRECT:
            return self.beside_direct
        return self.load.tokens > 0 or self.load.connections <= target.connections

    def _load_for(self, target: Target) -> Load:
        """Use fewer endless streams for a slow target: that distorts CPU per event less than an overload does."""
        endless = self.load.tokens == ENDLESS
        return replace(
            self.load,
            connections=min(self.load.connections, target.streams) if endless else self.load.connections,
            warm_up_seconds=self.load.warm_up_seconds * target.pace,
            seconds=self.load.seconds * target.pace,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryStep(Step):
    """Memory of a new process, idle and with all streams open.

    Attributes:
        idle: the streams hardly ever have an event.
    """

    streams: int
    idle: bool

    def run(self, lab: Lab, target: Target) -> Report:
        period_us = _IDLE_PERIOD_US if self.idle else EVENT_PERIOD_US
        load = self._load_for(target)
        with (
            lab.generator.engines(period_us=period_us) as engines,
            lab.fresh(target.own_proxy, engines) as process,
        ):
            time.sleep(1)
            before = memory_bytes(process.pids)
            report = lab.run(load, engines, process)
        if self.idle and report["streaming"] < load.connections:
            raise RuntimeError(f"only {report['streaming']} of {load.connections} streams had begun")
        return report | {"idle_memory_bytes": before}

    def seconds(self, target: Target, pace: float) -> float:
        return target.start_seconds + 2 + self._load_for(target).total_seconds(pace)

    def _load_for(self, target: Target) -> Load:
        most = target.idle_streams if self.idle else target.streams
        return Load(min(self.streams, most), tokens=ENDLESS, warm_up_seconds=12 if self.idle else 4, seconds=3)


@dataclass(frozen=True, slots=True, kw_only=True)
class MostStreamsStep(Step):
    """The most streams that a target can carry."""

    def run(self, lab: Lab, target: Target) -> Report:
        return most_streams(lambda load: lab.load_shared(target, load), target.searched)

    def seconds(self, target: Target, pace: float) -> float:
        """Five probes, some of which fail and are repeated."""
        middle = target.searched[len(target.searched) // 2]
        return 7 * (probing(middle).total_seconds(pace) + 0.5)

    def applies_to(self, target: Target) -> bool:
        """Also to the engine alone: the load generator's own limit is the most that can be measured of a proxy."""
        return bool(target.searched)


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetStep(Step):
    """Requests without streaming, through a proxy in front of many engines or for many models."""

    backends: int
    models: int = 1
    names: tuple[str, ...]

    def run(self, lab: Lab, target: Target) -> Report:
        with (
            lab.generator.engines(self.backends, models=self.models) as engines,
            lab.fresh(target.own_proxy, engines) as process,
        ):
            time.sleep(_SETTLE_SECONDS)
            return lab.run(self._load, engines, process)

    def seconds(self, target: Target, pace: float) -> float:
        return target.start_seconds + _SETTLE_SECONDS + self._load.total_seconds(pace)

    def applies_to(self, target: Target) -> bool:
        return target.name in self.names

    @property
    def _load(self) -> Load:
        return Load(64, models=self.models, warm_up_seconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkersStep(Step):
    """Requests without streaming, through one or more processes that share a port, with one core per process."""

    workers: int

    def run(self, lab: Lab, target: Target) -> Report:
        proxy = replace(target.own_proxy, settings=lambda _: {"WORKERS": str(self.workers)})
        # If no core is left for the load generator, it shares the workers' cores.
        beside = lab.cores[self.workers : self.workers + 1] or lab.cores
        generator = replace(lab.generator, cores=tuple(beside))
        with generator.engines() as engines, lab.fresh(proxy, engines, lab.cores[: self.workers]) as process:
            time.sleep(1)
            report = lab.run(_WORKERS_LOAD, engines, process, generator)
        busy = sum(cpu > sum(report["cpu_us"]) / 20 for cpu in report["cpu_us"])
        if busy != self.workers:
            raise RuntimeError(f"with WORKERS={self.workers} the work was done by {busy} process(es)")
        return report

    def seconds(self, target: Target, pace: float) -> float:
        return target.start_seconds + _WORKERS_LOAD.total_seconds(pace) + 1

    def applies_to(self, target: Target) -> bool:
        return target.name == OURS_NAME


def _all_steps() -> tuple[Step, ...]:
    return (
        LoadStep("requests-1kb", load=Load(64), beside_direct=True),
        LoadStep("requests-20kb", load=Load(64, 20_000)),
        LoadStep("requests-1mb", load=Load(8, 1_000_000)),
        LoadStep("latency-1", load=Load(1, warm_up_seconds=0.3, seconds=1.5), beside_direct=True),
        LoadStep("latency-512", load=Load(512, warm_up_seconds=1), beside_direct=True),
        LoadStep("first-event-64", load=Load(64, tokens=5, warm_up_seconds=1), beside_direct=True),
        LoadStep("events-256", load=Load(256, tokens=ENDLESS, warm_up_seconds=1.6, seconds=3)),
        MemoryStep("streams-1000", streams=1_000, idle=False),
        MemoryStep("idle-streams", rounds=1, streams=5_000, idle=True),
        MostStreamsStep("most-streams"),
        FleetStep("fleet-2", backends=2, names=_FLEETS),
        FleetStep("fleet-32", backends=32, names=_FLEETS),
        FleetStep("fleet-256", backends=256, names=_FLEETS),
        FleetStep("models-50", backends=2, models=50, names=(OURS_NAME,)),
        WorkersStep("workers-1", workers=1),
        WorkersStep("workers-2", workers=2),
    )


STEPS = {step.name: step for step in _all_steps()}
