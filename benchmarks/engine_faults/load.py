"""Closed-loop load during which a fault occurs, and its outcome."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from engine_faults.clients import Load, Result

__all__ = ["FaultedLoad", "Outcome", "kinds", "share"]

_FAULT_AT = 3.0
_WARM_UP_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one target in one scenario.

    Attributes:
        cell: text for the table.
        details: figures for the JSON file.
        healthy_per_second: rate of answers before the fault; ``None`` if the scenario has no such phase.
    """

    cell: str
    details: dict[str, Any]
    healthy_per_second: float | None = None

    def figures(self) -> dict[str, Any]:
        return {"cell": self.cell, "healthy_per_second": self.healthy_per_second, **self.details}


@dataclass(slots=True)
class FaultedLoad:
    """Load on a proxy, and the moment of the fault."""

    port: int
    grace_seconds: float = 1.0
    fault: float = 0.0
    load: Load = field(init=False)

    async def run(self, script: Callable[[], Awaitable[None]]) -> None:
        """Run the load; call ``script`` at the time of the fault, and end the load when it returns."""
        self.load = Load(self.port)

        async def all_of_it() -> None:
            await asyncio.sleep(_FAULT_AT)
            self.fault = time.monotonic()
            await script()

        await self.load.run(all_of_it, self.grace_seconds)

    @property
    def since_fault(self) -> list[Result]:
        return [result for result in self.load.results if result.ended >= self.fault]

    @property
    def failed(self) -> list[Result]:
        return [result for result in self.since_fault if result.failure]

    def outcome(self, cell: str, **details: Any) -> Outcome:
        """An outcome with the figures that all scenarios under load share."""
        before = [result for result in self.load.results if result.ended < self.fault]
        failed_before = sum(result.failure is not None for result in before)
        if failed_before:
            cell += f" (and {failed_before} failed before the fault)"
        warm = self.fault - _FAULT_AT + _WARM_UP_SECONDS
        good = sum(result.failure is None and result.ended >= warm for result in before)
        details |= {
            "requests": len(self.since_fault),
            "failures": Counter(result.failure for result in self.failed),
            "failed_before": failed_before,
            "failed_by_second": Counter(int(result.ended - self.fault) for result in self.failed),
            "slowest_seconds": max((result.seconds for result in self.since_fault), default=0.0),
        }
        return Outcome(cell, details, good / (_FAULT_AT - _WARM_UP_SECONDS))


def kinds(failed: list[Result]) -> str:
    """Failures by kind, such as `` (3 broken, 1 503)``; empty if there are none."""
    counts = Counter(result.failure or "slow" for result in failed)
    return f" ({', '.join(f'{count} {kind}' for kind, count in counts.most_common())})" if counts else ""


def share(part: int, whole: int) -> str:
    return f"{part / max(1, whole):.1%}" if part else "0"
