"""The scenarios: each causes a fault behind a fresh proxy, and reports what clients and engines saw."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from engine_faults.capture import Arrivals, capture
from engine_faults.clients import Burst, Stream, read_stream
from engine_faults.fleet import Fleet
from engine_faults.load import FaultedLoad, Outcome, kinds, share

__all__ = ["SCENARIOS", "Scenario"]

_WINDOW = 0.5
_SLOW = 5.0
_AFTER_RETURN = 8.0
_TOKENS = 100  # tokens per stream, 50 ms each, unless ordered otherwise


@dataclass(frozen=True, slots=True)
class Scenario:
    title: str
    run: Callable[[int, Fleet], Awaitable[Outcome]]  # the proxy's port, its engines
    engines: int = 3


async def _kill(port: int, fleet: Fleet) -> Outcome:
    """A: SIGKILL one of three engines, restart it after 5 s, end after 13 s."""
    run = FaultedLoad(port)
    returned = 0.0

    async def script() -> None:
        nonlocal returned
        fleet.kill(2)
        await asyncio.sleep(5)
        await fleet.start(2)
        returned = time.monotonic()
        await asyncio.sleep(_AFTER_RETURN)

    with capture(fleet.ports[2]) as arrivals:
        await run.run(script)
    again = [at - returned for at in (await fleet.state(2))["arrivals"]]
    stops = _traffic_stops(arrivals, run.fault, returned)
    back = f"{again[0]:.1f} s" if again else f"> {_AFTER_RETURN:.0f} s"
    cell = f"{len(run.failed)}{kinds(run.failed)} / {stops} / {back}"
    attempts = None if arrivals is None else sum(run.fault <= at < returned for at in arrivals.connections)
    return run.outcome(cell, connection_attempts_while_dead=attempts, first_use_after_return=again[:1])


def _traffic_stops(arrivals: Arrivals | None, fault: float, returned: float) -> str:
    """Time of the last window with at least three connection attempts: fewer are the proxy's health checks."""
    if arrivals is None:
        return "?"
    windows = Counter(int((at - fault) / _WINDOW) for at in arrivals.connections if fault <= at < returned)
    busy = [number for number, attempts in windows.items() if attempts >= 3]
    if not busy:
        return "at once"
    stop = (max(busy) + 1) * _WINDOW
    return f"{stop:.1f} s" if stop < 5 else "not within 5 s"


async def _fast_failures(port: int, fleet: Fleet) -> Outcome:
    """B: one engine answers 503 after 1 ms for 9 s, while its health checks pass."""
    run = FaultedLoad(port)

    async def script() -> None:
        await fleet.order(2, failing=True)
        await asyncio.sleep(9)

    await run.run(script)
    states = [await fleet.state(number) for number in range(3)]
    attempts = [[at - run.fault for at in state["arrivals"] if at >= run.fault] for state in states]
    counts = [len(each) for each in attempts]
    drawn = counts[2] / max(1, sum(counts))
    cell = f"{share(len(run.failed), len(run.since_fault))} / {drawn:.1%} / {_below_a_twentieth(attempts)}"
    return run.outcome(cell, attempts_by_engine=counts)


def _below_a_twentieth(attempts: list[list[float]]) -> str:
    """The time when the last engine's share of attempts falls below 5 % for good."""
    windows = [Counter(int(at / _WINDOW) for at in each) for each in attempts]
    last = int(9 / _WINDOW) - 1
    above = [number for number in range(last + 1) if windows[2][number] * 20 >= max(1, sum(w[number] for w in windows))]
    if not above:
        return "at once"
    return "never" if above[-1] == last else f"{(above[-1] + 1) * _WINDOW:.1f} s"


async def _freeze(port: int, fleet: Fleet) -> Outcome:
    """C: SIGSTOP one engine; 9 s of new requests, then 5.5 s for waiting requests."""
    run = FaultedLoad(port, grace_seconds=5.5)

    async def script() -> None:
        fleet.freeze(2)
        await asyncio.sleep(9)

    with capture(fleet.ports[2]) as arrivals:
        await run.run(script)
    bad = [result for result in run.since_fault if result.failure or result.seconds > _SLOW]
    stuck = [result for result in bad if result.failure == "stuck"]
    answered = [result.seconds for result in run.since_fault if result.failure is None]
    sent = [] if arrivals is None else [at - run.fault for at in arrivals.requests]
    last = "?" if arrivals is None else f"{max([0.0, *sent]):.1f} s"
    slowest = "stuck" if stuck else f"{max(answered, default=0.0):.1f} s"
    cell = f"{len(bad)}{kinds(bad)} / {last} / {slowest}"
    return run.outcome(cell, slowest_answer_seconds=max(answered, default=0.0))


async def _rolling(port: int, fleet: Fleet) -> Outcome:
    """D: rolling restart: each engine in turn is killed and restarted after 2 s; 1 s later, the next one."""
    run = FaultedLoad(port)

    async def script() -> None:
        for number in range(3):
            fleet.kill(number)
            await asyncio.sleep(2)
            await fleet.start(number)
            await asyncio.sleep(1)

    await run.run(script)
    cell = f"{len(run.failed)} ({share(len(run.failed), len(run.since_fault))}){kinds(run.failed)}"
    return run.outcome(cell)


async def _balance(port: int, fleet: Fleet) -> Outcome:
    """E: 64 simultaneous requests to four idle engines; then 60 while three of them run foreign requests."""
    idle, failed_idle = await _shares(port, fleet, 64)
    for number in range(3):
        await fleet.order(number, foreign=3)
    await asyncio.sleep(6)
    loaded, failed_loaded = await _shares(port, fleet, 60)
    cell = f"{max(idle)}/{min(idle)}; {loaded[3] / max(1, sum(loaded)):.0%}"
    failed = failed_idle + failed_loaded
    if failed:
        cell += f" ({failed} failed)"
    return Outcome(cell, {"idle": idle, "three_loaded": loaded, "failed": failed})


async def _shares(port: int, fleet: Fleet, requests: int) -> tuple[list[int], int]:
    """The number of requests by engine, and the number of failures."""
    before = await _served(fleet)
    burst = Burst(port)
    failures = await asyncio.gather(*await burst.send(requests))
    burst.leave()
    shares = [new - old for new, old in zip(await _served(fleet), before, strict=True)]
    return shares, sum(failure is not None for failure in failures)


async def _served(fleet: Fleet) -> list[int]:
    return [len((await fleet.state(number))["arrivals"]) for number in range(len(fleet.ports))]


async def _clients_leave(port: int, fleet: Fleet) -> Outcome:
    """F: 50 streams and 50 other requests of 10 s; all clients close after 0.5 s."""
    for number in range(3):
        await fleet.order(number, answer_seconds=10, tokens=2 * _TOKENS)
    burst = Burst(port)
    await burst.send(50, streams=50)
    await asyncio.sleep(0.5)
    began = [await fleet.state(number) for number in range(3)]
    burst.leave()
    await asyncio.sleep(1)
    left = [await fleet.state(number) for number in range(3)]
    totals = {kind: sum(state[kind] for state in left) for kind in ("streams", "plain")}
    running = sum(state["streams"] + state["plain"] for state in began)
    cell = f"{totals['streams']}+{totals['plain']}"
    if running < 100:
        cell += f" (only {running} of 100 had begun)"
    return Outcome(cell, totals | {"begun": running})


async def _streams_hit(port: int, fleet: Fleet) -> Outcome:
    """G: 30 streams of 5 s; one engine is killed after 2 s."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(read_stream(port, patience_seconds=20)) for _ in range(30)]
        await asyncio.sleep(2)
        fleet.kill(2)
    streams = [task.result() for task in tasks]
    hit = Counter(_verdict(stream) for stream in streams if stream.tokens_of(2))
    others = Counter(_verdict(stream) for stream in streams if not stream.tokens_of(2))
    cell = ", ".join(f"{count} {verdict}" for verdict, count in hit.most_common()) or "none was hit"
    if others.total() != others["whole"]:
        cell += f" (of the others: {others.total() - others['whole']} not whole)"
    return Outcome(cell, {"hit": hit, "others": others})


def _verdict(stream: Stream) -> str:
    """How the stream looked to its client."""
    whole = sum(map(stream.tokens_of, range(3))) == _TOKENS
    return "whole" if whole and stream.ending == "[DONE]" else stream.ending


SCENARIOS = {
    "A": Scenario("kill", _kill),
    "B": Scenario("fast 503", _fast_failures),
    "C": Scenario("frozen", _freeze),
    "D": Scenario("rolling restart", _rolling),
    "E": Scenario("idle max/min; loaded by others", _balance, engines=4),
    "F": Scenario("left running, streams+others", _clients_leave),
    "G": Scenario("streams of a killed engine", _streams_hit),
}
