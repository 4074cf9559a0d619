"""Compares proxies when engines fail: breaks the engines of all targets in the same ways, and prints one table.

    benchmarks/faults.sh [SCENARIOS] [TARGETS] [--json FILE]

For example, ``benchmarks/faults.sh ABD inference-proxy,smg``. By default, runs everything, in about nine minutes.
The table's legend explains the scenarios. Needs Linux and two cores. As root, it also captures packets sent to a
dead or frozen engine; otherwise those cells show a question mark. All traffic stays on 127.0.0.1.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, cast

import uvloop

from engine_faults.fleet import fleet
from engine_faults.load import Outcome
from engine_faults.scenarios import SCENARIOS
from engine_faults.targets import TARGETS, started
from proxies.proxy import Site, free_port

_FULL_LOAD = 900  # requests per second; the maximum is 1000, by 100 clients with answers of 100 ms

Results = dict[str, dict[str, Outcome | str]]  # by target and scenario

_LEGEND = """
Three fake vLLM engines (E: four), one process each, answer after 100 ms. 100 clients with one connection each send
their next request after each answer, and pause for 50 ms after a failure. The fault occurs after 3 s. Each cell is
one run of a fresh proxy. Failed: a status other than 200, or an answer that was truncated or never came.

* **A** one engine is killed and restarted after 5 s: failed requests / time until only health checks (fewer than
  3 connection attempts in 0.5 s) go to the dead engine / time from its return to its first request.
* **B** one engine answers 503 after 1 ms for 9 s, while its /health stays good: share of failed requests / that
  engine's share of all attempts / time until that share stays below 5 %.
* **C** one engine is frozen (SIGSTOP); 9 s of new requests, then 5.5 s of waiting: requests that failed or took more
  than 5 s / last new request to the frozen engine / slowest answer; "stuck": no answer by the end.
* **D** rolling restart: each engine in turn is killed and restarted after 2 s; 1 s later, the next: failed requests.
* **E** 64 simultaneous requests to four idle engines: most and fewest on one engine; then three engines report 3
  foreign requests each, and 60 more arrive at once: share of the fourth engine (unaware: 25 %, ideal: 29 %).
* **F** 50 streams and 50 other requests of 10 s; clients close after 0.5 s: streams + others that the engines still
  process 1 s later.
* **G** 30 streams; one engine is killed after 2 s: how its streams end. "broken off": the connection closes within the
  body; "whole": nothing is missing.

inference-proxy has its default settings.
haproxy-tuned: leastconn, a check every 2 s, fall 2, rise 1, mark-down after 10 errors, which ends its sessions,
retries on another engine, abortonclose. nginx-nonidem: least_conn, tries another engine after errors and 502-504,
for POST too. vllm-router, smg: --policy power_of_two, otherwise defaults; smg gets 12 s before the clients start,
because it polls loads every 10 s and favours some engines until the second poll."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="faults.sh", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("scenarios", nargs="?", default="".join(SCENARIOS), help="letters, such as ABD")
    parser.add_argument("targets", nargs="?", default=",".join(TARGETS), help="names, separated by commas")
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args()
    scenarios, targets = list(options.scenarios.upper()), options.targets.split(",")
    for name, known in [(name, SCENARIOS) for name in scenarios] + [(name, TARGETS) for name in targets]:
        if name not in known:
            parser.error(f"{name!r} is none of {', '.join(known)}")
    try:
        results = uvloop.run(_run(scenarios, targets))
    except asyncio.CancelledError:
        sys.exit("faults.sh: interrupted; all processes have been ended")
    print("\n".join(_table(scenarios, results)))
    print(_LEGEND)
    if options.json is not None:
        options.json.write_text(json.dumps(_report(results), indent=1))


async def _run(scenarios: list[str], targets: list[str]) -> Results:
    """Run each target in each scenario.

    Raises:
        CancelledError: Ctrl-C or SIGTERM; all started processes have been ended.
    """
    task = cast("asyncio.Task[Results]", asyncio.current_task())
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    results: Results = {name: {} for name in targets}
    for letter in scenarios:  # all targets of a scenario in turn: a machine's speed drifts within minutes
        for name in targets:
            print(f"{letter}: {name}", file=sys.stderr)
            results[name][letter] = await _outcome(letter, name)
    return results


async def _outcome(letter: str, name: str) -> Outcome | str:
    """The outcome, or the reason why there is none."""
    target, scenario = TARGETS[name], SCENARIOS[letter]
    if not target.is_installed:
        return "not installed"
    try:
        with tempfile.TemporaryDirectory() as folder:
            async with fleet(scenario.engines) as engines:
                site = Site(Path(folder), free_port(), engines.ports)
                async with started(target, site):
                    outcome = await scenario.run(site.port, engines)
    except (OSError, RuntimeError, ExceptionGroup) as error:
        print(f"   {error!r}", file=sys.stderr)
        return "no result"
    print(f"   {outcome.cell}", file=sys.stderr)
    return outcome


def _table(scenarios: list[str], results: Results) -> Iterator[str]:
    yield ""
    yield _row(["target", *(f"{letter} {SCENARIOS[letter].title}" for letter in scenarios), "healthy req/s"])
    yield "|---" * (len(scenarios) + 2) + "|"
    for name, outcomes in results.items():
        healthy = _healthy(outcomes)
        yield _row([name, *map(_cell, outcomes.values()), "-" if healthy is None else f"{healthy:.0f}"])
    weak = [name for name, outcomes in results.items() if (_healthy(outcomes) or _FULL_LOAD) < _FULL_LOAD]
    if weak:
        yield f"\nBelow {_FULL_LOAD} req/s before the fault: {', '.join(weak)}. If all are, the machine is too slow."
    if any("?" in _cell(each) for outcomes in results.values() for each in outcomes.values()):
        yield "\n?: only root can see what is sent to a dead or frozen engine."


def _cell(outcome: Outcome | str) -> str:
    return outcome if isinstance(outcome, str) else outcome.cell


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _healthy(outcomes: dict[str, Outcome | str]) -> float | None:
    rates = [each.healthy_per_second for each in outcomes.values() if isinstance(each, Outcome)]
    known = [rate for rate in rates if rate is not None]
    return median(known) if known else None


def _report(results: Results) -> dict[str, Any]:
    about = {"machine": platform.machine(), "kernel": platform.release(), "python": platform.python_version()}
    cells = {
        name: {letter: each if isinstance(each, str) else each.figures() for letter, each in outcomes.items()}
        for name, outcomes in results.items()
    }
    return {"about": about, "results": cells}


if __name__ == "__main__":
    main()
