"""Measures all targets in turn, round after round, and prints tables of their costs.

    benchmarks/run.sh [--rounds N] [--targets A,B] [--steps X,Y] [--json FILE]

If a target fails in a step, the failure is reported, the run continues, and the exit status is 1 at the end.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from suite.claims import claims_as_json
from suite.figures import Figures
from suite.lab import Lab, opened_lab
from suite.machine import about
from suite.progress import Progress, as_minutes
from suite.results import Failure, Results
from suite.steps import STEPS
from suite.tables import claims_table, failures_list, result_tables
from suite.targets import DIRECT, TARGETS, Target
from suite.turns import Turn, turns_of


def main() -> None:
    options = _options()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("needs two cores: one for the proxy, one for the load")
    os.sched_setaffinity(0, {cores[1]})  # for the load and this process; targets get the first core
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # raises, so that all processes are ended
    targets = _installed(options.targets)
    turns = list(turns_of(options.rounds, options.steps, targets))
    results = Results(about(targets, pace=options.pace), options.rounds)
    try:
        with opened_lab(options.programs, cores, options.pace) as lab:
            _measure(lab, turns, results, options.json)
    except KeyboardInterrupt:
        print(f"\ninterrupted; figures so far: {options.json}", file=sys.stderr)
        sys.exit(130)
    figures = Figures(results)
    print(f"\n{result_tables(figures)}\n\n{claims_table(figures, only_measured=True)}\n\nAll figures: {options.json}")
    if results.failures:
        sys.exit(f"\nwithout a figure:\n{failures_list(results.failures)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=os.environ.get("BENCHMARK", "run.sh"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--programs", type=Path, required=True, help="folder with the compiled engine and client")
    parser.add_argument("--rounds", type=int, default=3, help="number of measurements of each figure")
    parser.add_argument("--targets", type=_names_of(TARGETS), default=list(TARGETS), help=", ".join(TARGETS))
    parser.add_argument("--steps", type=_names_of(STEPS), default=list(STEPS), help=", ".join(STEPS))
    parser.add_argument(
        "--json", type=Path, default=Path("benchmark.json"), help="file for all figures, updated each step"
    )
    parser.add_argument(
        "--pace",
        type=float,
        default=1.0,
        help="factor for the duration of every load; use 0.1 to try out the benchmark",
    )
    return parser.parse_args()


def _names_of(known: Collection[str]) -> Callable[[str], list[str]]:
    """A parser for comma-separated names."""

    def read(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return names

    return read


def _installed(names: list[str]) -> list[Target]:
    """The installed targets, and always the engine itself, because added latency is relative to it."""
    targets = [TARGETS[name] for name in dict.fromkeys([*names, DIRECT])]
    for target in targets:
        if not target.is_installed:
            print(f"{target.name} is not installed: leaving it out", file=sys.stderr)
    return [target for target in targets if target.is_installed]


def _measure(lab: Lab, turns: list[Turn], results: Results, file: Path) -> None:
    starts = {turn.target.name: turn.target.start_seconds for turn in turns}
    estimated = sum(starts.values()) + sum(turn.seconds(lab.pace) for turn in turns)
    print(f"{len(turns)} measurements, about {as_minutes(estimated)} minutes", file=sys.stderr)
    progress = Progress(estimated)
    for turn in turns:
        progress.show(f"round {turn.round + 1}/{results.rounds}: {turn.step.name}, {turn.target.name}")
        try:
            report = turn.step.run(lab, turn.target)
        except (OSError, RuntimeError, ValueError, subprocess.SubprocessError) as error:
            failure = Failure(turn.round, turn.step.name, turn.target.name, str(error))
            results.failures.append(failure)
            progress.note(failures_list([failure]))
        else:
            results.add(turn.round, turn.step.name, turn.target.name, report)
        progress.advance(turn.seconds(lab.pace))
        figures = Figures(results)
        results.write(file, figures=figures.as_json(), claims=claims_as_json(figures))


if __name__ == "__main__":
    main()
