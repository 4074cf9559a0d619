"""Compares balancing policies: simulates every trace of a set with every policy on a virtual clock, and prints tables.

    benchmarks/balance.sh [--set fleets|use-cases|replicas] [--traces NAMES] [--policies NAMES]
                          [--seed N | --held-out] [--quick] [--json FILE] [--svg FILE]

The same arguments produce the same tables on every machine.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from simulation.catalogue import TRACES
from simulation.figures import figures_of
from simulation.fleet import Run, run
from simulation.margins import margins
from simulation.plot import svg
from simulation.policies import POLICIES
from simulation.replica_report import replica_tables
from simulation.replica_traces import REPLICA_TRACES
from simulation.report import Results, document_with, tables, use_case_tables
from simulation.trace import Trace
from simulation.use_case_traces import USE_CASES

_QUICK = 0.2  # fraction of each trace's duration
_QUICK_BACKENDS = 64
_DOCS = Path(__file__).parent.parent / "docs"
_SETS = {"fleets": TRACES, "use-cases": USE_CASES, "replicas": REPLICA_TRACES}
_PARTS = {
    "fleets": (_DOCS / "balancing-figures.md", "results"),
    "use-cases": (_DOCS / "balancing-figures.md", "use cases"),
    "replicas": (_DOCS / "replicas.md", "results"),
}
_ALL = TRACES | USE_CASES | REPLICA_TRACES
_PICTURE = _DOCS / "images" / "balancing.svg"


def main() -> None:
    options = _options()
    results = json.loads(options.tables_of.read_text()) if options.tables_of else _run(options)
    text = _text(results, options.set)
    print(text)
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=1) + "\n")
    if options.svg is not None:
        options.svg.write_text(svg(results))
    if options.document:
        page, part = _PARTS[options.set]
        page.write_text(document_with(text, page, part))
        if options.set == "fleets":
            _PICTURE.write_text(svg(results))


def _text(results: Results, which: str) -> str:
    if which == "fleets":
        return tables(results, TRACES)
    if which == "replicas":
        return replica_tables(results, REPLICA_TRACES)
    text = use_case_tables(results, USE_CASES)
    has_both = all({"expected_time", "smg"} <= by_policy.keys() for by_policy in results.values())
    return margins(results, "expected_time", "smg") + "\n" + text if has_both else text


def _options() -> Any:
    parser = argparse.ArgumentParser(
        prog="balance.sh", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--set", choices=_SETS, default="fleets", help="which set of traces (default: fleets)")
    parser.add_argument("--traces", type=_names(_ALL), help="names, separated by commas (default: all of the set)")
    parser.add_argument("--policies", type=_names(POLICIES), default=list(POLICIES), help="names, separated by commas")
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=int, help="use this seed for all traces")
    seeds.add_argument("--held-out", action="store_true", help="use the seeds that no policy was tuned on")
    parser.add_argument("--quick", action="store_true", help="a fifth of the duration, one seed, at most 64 backends")
    parser.add_argument(
        "--processes", type=int, default=min(2, os.cpu_count() or 1), help="number of parallel processes"
    )
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--svg", type=Path, help="file for a picture of the overview")
    parser.add_argument("--document", action="store_true", help="write the tables into the page of the set in docs/")
    parser.add_argument("--tables-of", type=Path, help="run nothing; print the tables of a --json file")
    options = parser.parse_args()
    if options.held_out and options.set == "fleets":
        parser.error("--held-out needs --set use-cases or replicas: the traces of the other set have no held-out seeds")
    known = _SETS[options.set]
    options.traces = options.traces or list(known)
    if strange := [name for name in options.traces if name not in known]:
        parser.error(f"these traces are not in the set {options.set}, see --set: {', '.join(strange)}")
    return options


def _names(known: dict[str, Any]) -> Any:
    def names(text: str) -> list[str]:
        for name in text.split(","):
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return text.split(",")

    return names


def _quickened(trace: Trace) -> Trace:
    return replace(trace.shortened(_QUICK), seeds=trace.seeds[:1])


def _traces(*, quick: bool) -> dict[str, Trace]:
    if not quick:
        return _ALL
    return {name: _quickened(trace) for name, trace in _ALL.items() if trace.backends <= _QUICK_BACKENDS}


def _run(options: Any) -> Results:
    traces = {name: trace for name, trace in _traces(quick=options.quick).items() if name in options.traces}
    seeds = {name: _seeds(trace, options) for name, trace in traces.items()}
    jobs = [
        (name, policy, seed, options.quick) for name in traces for policy in options.policies for seed in seeds[name]
    ]
    results: dict[str, dict[str, dict[str, object]]] = {name: {} for name in traces}
    with ProcessPoolExecutor(options.processes, initializer=_hush) as pool:
        runs: Iterator[Run] = pool.map(_one, jobs)
        for name, trace in traces.items():
            for policy in options.policies:
                of_seeds = [next(runs) for _ in seeds[name]]
                results[name][policy] = figures_of(of_seeds, trace.backends).as_json()
            print(f"{name}: done", file=sys.stderr)
    return results


def _seeds(trace: Trace, options: Any) -> tuple[int, ...]:
    if options.held_out:
        return trace.held_out_seeds
    return trace.seeds if options.seed is None else (options.seed,)


def _hush() -> None:
    logging.disable()  # the project's code would log the state of its simulated backends


def _one(job: tuple[str, str, int, bool]) -> Run:
    """Run one job, given by names, because workloads are closures, which cannot be pickled."""
    trace, policy, seed, quick = job
    return run(_traces(quick=quick)[trace], POLICIES[policy], seed)


if __name__ == "__main__":
    main()
