"""Runs the proxy for some minutes with all kinds of faults and clients, and fails if anything is left at the end.

Usage: python -m soak MINUTES [--seed N]
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import uvloop

from soak.checks import Checks, all_are, fewest_descriptors, in_time
from soak.clients import KEEPING_KINDS, KINDS, Clients
from soak.engines import EngineProcess, started_engines, write_fleet_file
from soak.faults import FaultDriver
from soak.proxy import Proxy
from soak.report import Report
from soak.tally import Tally
from soak.timeline import Timeline
from soak.watch import LivezProbe, Samples

_SAMPLE_SECONDS = 2.0
_START_SECONDS = 60.0
_MEGABYTE = 2**20
_SETTINGS = {
    "PORT": "0",
    "CONFIG_FILE": "fleet.yaml",
    # Short, so that everything that usually takes hours happens in minutes.
    "METRICS_CACHE_TTL_SECONDS": "1",
    "BACKEND_TIMEOUT_SECONDS": "10",
    "SUSPECT_AFTER_SECONDS": "5",
    "SLOW_START_SECONDS": "5",
    "MAX_QUEUED_REQUESTS": "12",
    "QUEUE_TIMEOUT_SECONDS": "5",
    "CLIENT_HEADER_TIMEOUT_SECONDS": "4",
    "CLIENT_BODY_TIMEOUT_SECONDS": "4",
    "CLIENT_KEEP_ALIVE_SECONDS": "6",
    "CLIENT_WRITE_STALL_SECONDS": "4",
}


class Soak:
    """One run.

    Args:
        folder: an empty folder.
        minutes: how long faults last.
        seed: determines the sequence of events.
    """

    def __init__(self, folder: Path, minutes: float, seed: int) -> None:
        self._folder = folder
        self._minutes = minutes
        self._seed = seed
        self._timeline = Timeline()
        self._report = Report(f"Soak of {minutes:g} minutes, seed {seed}, {os.cpu_count()} cores")
        self._checks = Checks(self._report)

    async def run(self) -> bool:
        """Run it; returns whether all checks passed."""
        _say(f"seed {self._seed}; starting two llama.cpp servers, four scripted engines and the proxy")
        fleet_file = self._folder / "fleet.yaml"
        admin_key = f"soak-{random.SystemRandom().getrandbits(64):x}"
        async with started_engines(self._folder) as engines:
            write_fleet_file(fleet_file, engines[:-1])
            async with Proxy(self._folder, **_SETTINGS, ADMIN_KEY=admin_key) as proxy:
                await in_time(_START_SECONDS, lambda: all_are(proxy, engines[:-1], ("up",)))
                base = await fewest_descriptors(proxy)
                tally = Tally(self._timeline, engines)
                clients = Clients(proxy.port, self._seed, tally.take)
                faults = FaultDriver(
                    engines, fleet_file, self._timeline, proxy.port, admin_key, proxy.reload, self._seed
                )
                samples = Samples(proxy, clients.open)
                probe = LivezProbe(proxy.port)
                probe.start()
                try:
                    await self._disturb_and_recover(proxy, engines, clients, faults, samples, probe, tally)
                finally:
                    probe.stop()
                await self._checks.check_quiet(proxy, engines, base, samples)
                self._checks.check_probe(probe)
                await self._checks.check_end(proxy)
                self._checks.check_memory(samples)
                self._sum_up(tally, clients, faults, samples, proxy)
        for line in self._report.lines():
            _say(line)
        return self._report.holds

    async def _disturb_and_recover(
        self,
        proxy: Proxy,
        engines: Sequence[EngineProcess],
        clients: Clients,
        faults: FaultDriver,
        samples: Samples,
        probe: LivezProbe,
        tally: Tally,
    ) -> None:
        lifted = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            sampler = group.create_task(self._sample(proxy, samples, probe, clients, faults, tally))
            disturber = group.create_task(faults.run(lifted))
            tasks = [
                group.create_task(clients.run(kind, number))
                for kind, (count, _, _) in KINDS.items()
                for number in range(count)
            ]
            await asyncio.wait([sampler], timeout=self._minutes * 60)
            lifted.set()
            clients.stopped |= KINDS.keys() - KEEPING_KINDS
            await disturber
            _say("all faults are lifted")
            if not proxy.has_ended:
                await self._checks.check_recovery(proxy, engines[:-1])
            clients.stopped |= KINDS.keys()
            await asyncio.wait(tasks)
            sampler.cancel()

    async def _sample(
        self,
        proxy: Proxy,
        samples: Samples,
        probe: LivezProbe,
        clients: Clients,
        faults: FaultDriver,
        tally: Tally,
    ) -> None:
        began = time.monotonic()
        minutes = itertools.count(1)
        minute = next(minutes)
        while not proxy.has_ended:
            await asyncio.sleep(_SAMPLE_SECONDS)
            try:
                await samples.take()
            except (OSError, RuntimeError) as error:
                samples.broken_invariants.append(f"/metrics: {error!r}")
            if time.monotonic() - began >= minute * 60 and samples.last is not None and not proxy.has_ended:
                so_far = _so_far(tally, clients, faults, samples)
                _say(f"{minute} min: {so_far}, /livez within {probe.worst_of_late():.3f} s")
                minute = next(minutes)

    def _sum_up(self, tally: Tally, clients: Clients, faults: FaultDriver, samples: Samples, proxy: Proxy) -> None:
        report = self._report
        report.check(
            "requests that ended as the rules forbid",
            f"{len(tally.forbidden)} of {tally.counts.total()}",
            "0",
            holds=not tally.forbidden,
            details=tuple(tally.forbidden),
        )
        report.check(
            "wrong answers to garbage, slow senders, scrapers and operators",
            str(clients.unexpected.total() + len(faults.unanswered)),
            "0",
            holds=not clients.unexpected and not faults.unanswered,
            details=(*clients.unexpected, *faults.unanswered),
        )
        report.check(
            "requests in flight as the proxy counts them, and as its clients do",
            f"{len(samples.broken_invariants)} of {samples.count} looks apart",
            "0, but for 0.5 s on the way and 2 requests",
            holds=not samples.broken_invariants,
            details=tuple(samples.broken_invariants),
        )
        used = samples.most_queued > 0 and tally.good > 0
        report.check(
            "the run was one: most in flight, most waiting",
            f"{samples.most_in_flight}, {samples.most_queued}",
            "some waited",
            holds=used,
        )
        report.count("requests of clients that stayed", tally.counts)
        what = "of these, while a backend that lists the model was undisturbed all the time (and perhaps full)"
        report.count(what, tally.avoidable)
        if samples.last is not None:
            last = samples.last
            report.check("streams that continued", str(last.resumes.total()), "some", holds=bool(last.resumes))
            report.count("requests that the proxy repeated, by its own reasons", last.retries)
            report.count("streams that continued on another backend, by the fault", last.resumes)
            report.count("broken streams that did not, by the rule", last.refusals)
        report.count("turns of clients", clients.done)
        report.count("faults", faults.done)
        report.count("lines of the access log", proxy.outcomes)


def _so_far(tally: Tally, clients: Clients, faults: FaultDriver, samples: Samples) -> str:
    proxy, last = samples.proxy, samples.last
    assert last is not None
    return (
        f"{faults.done.total()} faults, {clients.done.total()} turns of clients, {tally.counts.total()} requests, "
        f"{tally.good} good, {len(tally.forbidden)} forbidden, {last.in_flight} in flight, {last.queued} waiting, "
        f"{samples.resident[-1][1] / _MEGABYTE:.1f} MB, {proxy.descriptors().total()} files, "
        f"{proxy.cpu_seconds():.0f} s of CPU"
    )


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def _main(minutes: float, seed: int) -> bool:
    task = cast("asyncio.Task[bool]", asyncio.current_task())
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        return await Soak(Path(folder), minutes, seed).run()


def main() -> None:
    parser = argparse.ArgumentParser(prog="soak.sh", description=__doc__)
    parser.add_argument("minutes", type=float, help="how long faults last")
    parser.add_argument("--seed", type=int, help="of a run that shall come again, as far as time allows")
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    try:
        holds = uvloop.run(_main(options.minutes, seed))
    except (KeyboardInterrupt, asyncio.CancelledError):
        sys.exit("soak.sh: interrupted; everything it started is ended")
    sys.exit(0 if holds else 1)


if __name__ == "__main__":
    main()
