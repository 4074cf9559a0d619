"""Measures all targets in turn, round after round, and prints what ours costs as a multiple of what each peer costs.

Only figures of the same round are compared, since a machine's speed changes from minute to minute.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from targets import Bench, Target, free_port, running

_EVENT_PERIOD_US = 20_000  # 50 tokens a second, of each stream
_ENDLESS = 1_000_000  # tokens


@dataclass(frozen=True, slots=True)
class Step:
    """One kind of load.

    Attributes:
        unit: what a figure is divided by: a name in the client's report, or ``None`` for the latency itself.
        tokens: 0: whole replies, one after the other on each connection; else streams.
        rounds: ``None``: as many as asked for.
    """

    name: str
    connections: int
    body_bytes: int
    tokens: int
    warm_up_seconds: float
    seconds: float
    unit: str | None
    rounds: int | None = None

    def figure(self, report: dict[str, float]) -> float:
        """Microseconds: CPU time per unit, or the median latency."""
        return report["cpu_us"] / report[self.unit] if self.unit else report["p50_us"]


STEPS = (
    Step("CPU per request, 1 KB", 64, 1_000, 0, 0.5, 2, "requests"),
    Step("CPU per request, 20 KB", 64, 20_000, 0, 0.5, 2, "requests"),
    Step("latency p50, 1 connection", 1, 1_000, 0, 0.3, 1.5, None),
    Step("CPU per event, 256 streams", 256, 1_000, _ENDLESS, 1.6, 3, "events"),
    Step("CPU per event, 1000 streams", 1_000, 1_000, _ENDLESS, 4, 3, "events", rounds=1),
)

Results = dict[str, dict[str, list[dict[str, float]]]]  # step, target: reports in the order of rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--programs", type=Path, required=True, help="folder with the compiled engine and client")
    parser.add_argument("--peers", type=Path, required=True, help="folder with the peers' programs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("quick.json"), help="where all figures go")
    options = parser.parse_args()

    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("quick.sh needs two cores: one for the proxy, one for the load")
    os.sched_setaffinity(0, {cores[1]})  # the load's, and ours; targets choose theirs
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        engines = stack.enter_context(_engines(options.programs / "engine"))
        targets = stack.enter_context(running(Bench(folder, options.peers, engines, cores[0])))
        results = _measure(options.programs / "client", targets, options.rounds)
    names = [target.name for target in targets]
    print(f"\n{_table(results, names)}")
    about = {"machine": platform.machine(), "kernel": platform.release(), "python": platform.python_version()}
    options.json.write_text(
        json.dumps({"about": about, "ratios": _all_ratios(results, names), "reports": results}, indent=1)
    )
    print(f"\nAll figures: {options.json}")
    if any(report["failed"] for step in results.values() for reports in step.values() for report in reports):
        sys.exit("some requests failed: these figures are worth nothing")


@contextlib.contextmanager
def _engines(program: Path) -> Iterator[tuple[int, int]]:
    ports = free_port(), free_port()
    with subprocess.Popen([program, str(_EVENT_PERIOD_US), *map(str, ports)]) as process:
        try:
            yield ports
        finally:
            process.terminate()


def _measure(client: Path, targets: list[Target], rounds: int) -> Results:
    line_end = "\r" if sys.stderr.isatty() else "\n"
    results: Results = {step.name: {target.name: [] for target in targets} for step in STEPS}
    for number in range(rounds):
        for step in STEPS:
            if number >= (step.rounds or rounds):
                continue
            for target in targets if number % 2 == 0 else reversed(targets):
                print(f"round {number + 1}/{rounds}: {step.name}, {target.name:20}", end=line_end, file=sys.stderr)
                results[step.name][target.name].append(_report(client, step, target))
    return results


def _report(client: Path, step: Step, target: Target) -> dict[str, float]:
    load = [target.port, step.connections, step.body_bytes, step.tokens, step.warm_up_seconds, step.seconds]
    command = [str(client), *map(str, load), *map(str, target.pids)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    report: dict[str, float] = json.loads(done.stdout)
    return report


def _ratios(results: Results, step: Step, peer: str) -> list[float]:
    """Ours as a multiple of the peer's, in each round."""
    ours, *_ = results[step.name].values()
    theirs = results[step.name][peer]
    return [step.figure(mine) / step.figure(other) for mine, other in zip(ours, theirs, strict=True)]


def _all_ratios(results: Results, names: list[str]) -> dict[str, dict[str, float]]:
    return {step.name: {peer: round(median(_ratios(results, step, peer)), 3) for peer in names[1:]} for step in STEPS}


def _table(results: Results, names: list[str]) -> str:
    def row(*cells: Any) -> str:
        return "| " + " | ".join(map(str, cells)) + " |"

    lines = [row("microseconds, medians", *names, *(f"ours / {peer}" for peer in names[1:]))]
    lines.append("|---" * (2 * len(names)) + "|")
    for step in STEPS:
        figures = [median(map(step.figure, results[step.name][name])) for name in names]
        ratios = [_ratios(results, step, peer) for peer in names[1:]]
        spans = [f"{median(each):.2f} ({min(each):.2f}-{max(each):.2f})" for each in ratios]
        lines.append(row(step.name, *(f"{figure:.1f}" for figure in figures), *spans))
    return "\n".join(lines + [_at_most(name, results) for name in names])


def _at_most(name: str, results: Results) -> str:
    """How a target did with the most streams."""
    step = STEPS[-1]
    (report,) = results[step.name][name]
    arrived = report["events"] / (step.connections * step.seconds * 1e6 / _EVENT_PERIOD_US)
    return (
        f"\n{name} with {step.connections} streams at 50 tokens/s: {arrived:.1%} of the events, late by "
        f"{report['p50_us'] / 1000:.1f} ms (p50), {report['p99_us'] / 1000:.1f} ms (p99); "
        f"memory {report['memory_bytes'] / 1e6:.0f} MB"
    )


if __name__ == "__main__":
    main()
