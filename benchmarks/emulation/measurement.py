"""One run: a trace through a real proxy to engines, and what it shows."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import uvloop

from emulation.counters import PromptTokens, prompt_tokens
from emulation.player import Play, Played, play
from proxies.process import ProxyProcess, running
from proxies.proxy import Proxy, Site, free_port
from simulation.figures import percentile
from simulation.trace import Absence, Session, Trace

__all__ = ["Engines", "Measured", "figures_of", "measured"]

_SETTLE_SECONDS = 3.0  # enough for a proxy to poll all engines twice


class Engines(Protocol):
    """Engines with empty caches, real or emulated."""

    @property
    def ports(self) -> tuple[int, ...]: ...

    def leave(self, engine: int) -> object:
        """Make an engine unreachable."""

    def come_back(self, engine: int) -> object:
        """Make it reachable again, with an empty cache."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a run shows.

    Attributes:
        tokens: what each engine counted in the whole run.
        warm_tokens: what each engine counted after the warm-up.
        proxy_seconds: user and system time of the proxy's processes.
    """

    played: Played
    tokens: list[PromptTokens]
    warm_tokens: list[PromptTokens]
    proxy_seconds: float


def measured(proxy: Proxy, engines: Engines, trace: Trace, sessions: Sequence[Session], plan: Play) -> Measured:
    """Start the proxy, and send the trace through it; ``plan.port`` is replaced by the proxy's port.

    Raises:
        RuntimeError: the proxy did not start, or ended.
        OSError: an engine's counters could not be read.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        site = Site(Path(folder), free_port(), engines.ports)
        with running(proxy, site) as process:
            time.sleep(_SETTLE_SECONDS)
            try:
                found = uvloop.run(_run(process, engines, trace, sessions, replace(plan, port=site.port)))
            except ExceptionGroup as group:
                raise RuntimeError("; ".join(map(str, group.exceptions))) from group
            if process.has_ended:
                raise RuntimeError(f"the proxy ended by itself: {process.log_end}")
            return found


async def _run(
    process: ProxyProcess, engines: Engines, trace: Trace, sessions: Sequence[Session], plan: Play
) -> Measured:
    async def counted(after_seconds: float = 0.0) -> list[PromptTokens]:
        await asyncio.sleep(after_seconds)
        return await asyncio.to_thread(prompt_tokens, engines.ports)

    at_start, proxy_at_start = await counted(), process.cpu_seconds
    async with asyncio.TaskGroup() as group:
        after_warm_up = group.create_task(counted(trace.warm_up))
        if trace.absence is not None:
            group.create_task(_stage(trace.absence, engines))
        played = await play(plan, sessions)
        proxy_seconds = process.cpu_seconds - proxy_at_start
    at_end = await counted()
    return Measured(
        played,
        [last.since(first) for first, last in zip(at_start, at_end, strict=True)],
        [last.since(first) for first, last in zip(after_warm_up.result(), at_end, strict=True)],
        proxy_seconds,
    )


async def _stage(absence: Absence, engines: Engines) -> None:
    """Let an engine leave and come back."""
    await asyncio.sleep(absence.begin)
    await asyncio.to_thread(engines.leave, absence.backend)
    await asyncio.sleep(absence.end - absence.begin)
    await asyncio.to_thread(engines.come_back, absence.backend)


def figures_of(run: Measured, warm_up: float) -> dict[str, Any]:
    """The figures of a run for the JSON file; times to first tokens after the warm-up, in seconds.

    Raises:
        RuntimeError: no streamed request after the warm-up was answered.
    """
    played = run.played
    first = sorted(
        one.first_seconds for one in played.served if one.first_seconds is not None and one.began_at >= warm_up
    )
    if not first:
        raise RuntimeError(
            f"no stream was answered after the first {warm_up:.0f} s, which do not count; "
            f"failed attempts: {dict(played.failed_attempts)}"
        )
    read, cached = (sum(getattr(engine, kind) for engine in run.warm_tokens) for kind in ("read", "cached"))
    shares = [engine.read + engine.cached for engine in run.tokens]
    return {
        "requests": len(played.served),
        "hit_rate": cached / (read + cached) if read + cached else 0.0,
        "read_tokens": sum(engine.read for engine in run.tokens),
        "first_p50": percentile(first, 0.5),
        "first_p90": percentile(first, 0.9),
        "first_p99": percentile(first, 0.99),
        "whole_mean": sum(one.whole_seconds for one in played.served) / len(played.served),
        "wall_seconds": played.seconds,
        "proxy_cpu_seconds": run.proxy_seconds,
        "proxy_cpu_ms": run.proxy_seconds * 1000 / len(played.served),
        "busiest_share": max(shares) / sum(shares) * len(shares),
        "failed_attempts": played.failed_attempts.total(),
        "failure_kinds": dict(played.failed_attempts),
        "unanswered": played.unanswered,
    }
