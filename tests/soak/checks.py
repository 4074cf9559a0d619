"""Checks that nothing is left when faults and clients have ended."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from soak.engines import EngineProcess, ScriptedProcess
from soak.proxy import Proxy
from soak.report import Report
from soak.watch import LivezProbe, Samples, read_doubts, read_metrics, slope

__all__ = ["Checks", "all_are", "fewest_descriptors", "in_time"]

_LIVE_SECONDS = 30.0
_TRUSTED_SECONDS = 90.0  # the longest suspension of a failing backend with its jitter, and its trial request
_QUIET_SECONDS = 20.0
_LIVEZ_SECONDS = 1.0
_MORE_FILES = 2  # than at the start: a poll may be in progress, and a backend may keep its connection
_KEPT_FAILING = re.compile("is suspect: ")  # its suspension must end first, and grows with each fall
_WELL_KNOWN = ("up", "busy", "suspect")
_MEGABYTE = 2**20


class Checks:
    """Writes its findings to ``report``."""

    def __init__(self, report: Report) -> None:
        self._report = report

    async def check_recovery(self, proxy: Proxy, engines: Sequence[EngineProcess]) -> None:
        live = await in_time(_LIVE_SECONDS, lambda: all_are(proxy, engines, _WELL_KNOWN))
        seconds_left = _LIVE_SECONDS - (_LIVE_SECONDS if live is None else live)
        up = await in_time(seconds_left, lambda: all_are(proxy, engines, ("up",)))
        doubts = await read_doubts(proxy.port)
        details = tuple(f"{one.name} is {doubts[one.url]}" for one in engines if one.url in doubts)
        self._report.check(
            "all backends work again", _seconds(live), f"{_LIVE_SECONDS:g} s", holds=live is not None, details=details
        )
        if up is None:
            kept_failing = f" (after {_LIVE_SECONDS:g} s {'; '.join(details)})"
            up = await in_time(_TRUSTED_SECONDS - _LIVE_SECONDS, lambda: all_are(proxy, engines, ("up",)))
            found = _seconds(None if up is None else _LIVE_SECONDS + up) + kept_failing
        else:
            found = _seconds((live or 0.0) + up)
        self._report.check(
            "all are trusted again",
            found,
            f"{_LIVE_SECONDS:g} s; {_TRUSTED_SECONDS:g} s after falling again and again",
            holds=up is not None and (not details or all(_KEPT_FAILING.search(one) for one in details)),
            details=details,
        )

    async def check_quiet(
        self, proxy: Proxy, engines: Sequence[EngineProcess], base: Counter[str], samples: Samples
    ) -> None:
        if proxy.has_ended:
            self._report.check("the proxy runs to the end", "it has ended", "never", holds=False)
            return

        async def nothing_is_left() -> bool:
            metrics = await read_metrics(proxy.port)
            return not (metrics.in_flight or metrics.queued or metrics.on_backends)

        await in_time(_QUIET_SECONDS, nothing_is_left)
        left = await read_metrics(proxy.port)
        self._report.check("requests in flight at the end", str(left.in_flight), "0", holds=left.in_flight == 0)
        self._report.check("requests on backends at the end", str(left.on_backends), "0", holds=left.on_backends == 0)
        self._report.check("requests waiting at the end", str(left.queued), "0", holds=left.queued == 0)
        running = [(await one.order())["running"] for one in engines if isinstance(one, ScriptedProcess)]
        self._report.check("scripted engines' requests at the end", str(sum(running)), "0", holds=not sum(running))

        async def files_are_closed() -> bool:
            return (await fewest_descriptors(proxy)).total() <= base.total()

        await in_time(_QUIET_SECONDS, files_are_closed)
        now, allowed = await fewest_descriptors(proxy), base.total() + _MORE_FILES
        self._report.check(
            "open files at the end",
            f"{now.total()} (at the start {base.total()}, at most {samples.most_descriptors})",
            f"{allowed}: {_MORE_FILES} more",
            holds=now.total() <= allowed,
            details=tuple(f"{count} more: {what}" for what, count in (now - base).items()),
        )

    def check_probe(self, probe: LivezProbe) -> None:
        self._report.check(
            "the slowest answer of /livez",
            f"{probe.worst_seconds:.3f} s of {probe.count} (who asks was late by up to {probe.late_seconds:.3f} s)",
            f"{_LIVEZ_SECONDS:g} s, where the machine is not late itself",
            holds=probe.worst_fair_seconds <= _LIVEZ_SECONDS and not probe.failures,
            details=tuple(probe.failures),
        )

    async def check_end(self, proxy: Proxy) -> None:
        began = time.monotonic()
        code = await proxy.stop()
        found = f"{code} after {time.monotonic() - began:.1f} s"
        self._report.check("exit code after SIGTERM", found, "0", holds=code == 0)
        proxy.read_errors()
        self._report.check(
            "tracebacks, errors, what was never closed or retrieved, in its log",
            f"{len(proxy.bad_lines)} lines, {proxy.warnings} warnings beside",
            "0",
            holds=not proxy.bad_lines,
            details=tuple(proxy.bad_lines),
        )

    def check_memory(self, samples: Samples) -> None:
        since = samples.resident[0][0]
        warm = since + min(300.0, (samples.resident[-1][0] - since) * 0.4)
        fitted = [(at, size) for at, size in samples.resident if at >= warm]
        hours = (fitted[-1][0] - fitted[0][0]) / 3600
        found = slope(fitted) * 3600 / _MEGABYTE
        # 1 MB/h, plus one-time growth of caches and the allocator, which weighs more in a short run.
        bound = 1.0 + 2.0 / hours
        first, last = fitted[0][1] / _MEGABYTE, fitted[-1][1] / _MEGABYTE
        self._report.check(
            "growth of memory after the warm-up",
            f"{found:+.1f} MB/h ({first:.1f} to {last:.1f} MB in {hours * 60:.1f} min)",
            f"{bound:.1f} MB/h: 1, and 2 MB once",
            holds=found <= bound,
        )


async def in_time(seconds: float, holds: Callable[[], Awaitable[bool]]) -> float | None:
    """The seconds until ``holds`` is true; ``None`` if it takes longer than the limit."""
    began = time.monotonic()
    while time.monotonic() - began <= seconds:
        if await holds():
            return time.monotonic() - began
        await asyncio.sleep(0.2)
    return None


async def all_are(proxy: Proxy, engines: Sequence[EngineProcess], states: Sequence[str]) -> bool:
    metrics = await read_metrics(proxy.port)
    return all(metrics.states.get(engine.url) in states for engine in engines)


async def fewest_descriptors(proxy: Proxy) -> Counter[str]:
    """The minimum over some seconds, because polls open files again and again."""
    looks = []
    for _ in range(20):
        looks.append(proxy.descriptors())
        await asyncio.sleep(0.1)
    return min(looks, key=Counter.total)


def _seconds(passed: float | None) -> str:
    return "not in time" if passed is None else f"{passed:.1f} s"
