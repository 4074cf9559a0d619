"""Measures real proxies in front of emulated engines: plays traces of the simulation over HTTP, and prints tables.

    benchmarks/emulated_fleet.sh [--traces NAMES] [--engines SIZES] [--targets NAMES] [--seeds NUMBERS] [--seconds S]
                                 [--requests N] [--json FILE] [--svg FILE] [--document] [--list]

An emulated engine speaks llama.cpp's or vLLM's HTTP, and takes the time of the simulation's cost model, but hardly any
CPU. A target is inference-proxy/POLICY, smg, vllm-router or nginx.
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import Any

from emulation.cases import Case, cases_of
from emulation.fleet import running_fleet
from emulation.measurement import figures_of, measured
from emulation.options import numbers, traces_named
from emulation.player import Play
from emulation.report import picture, tables
from emulation.targets import DEFAULT_TARGETS, proxy_named
from simulation.catalogue import TRACES
from simulation.report import document_with
from suite.machine import about
from suite.repetitions import Turn, run_all, turns_of
from suite.results import Results, read_results
from warm_prefixes.plan import MODEL

_SIZES = (2, 8, 32)
_SECONDS = 120.0
_MOST_REQUESTS = 20_000
_OVERHEAD_SECONDS = 35.0  # to start the proxy, and to wait for the last answers
_DOCUMENT = Path(__file__).parents[2] / "docs" / "balancing-figures.md"
_PICTURE = _DOCUMENT.parent / "images" / "emulated-fleet.svg"
_CAPTION = "p90 of the time to the first token, relative to the best proxy"


def main() -> None:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # raises, so that all processes are ended
    results = read_results(options.tables_of) if options.tables_of else _measured(options)
    text = tables(results, TRACES)
    print(f"\n{text}")
    if options.svg is not None:
        options.svg.write_text(picture(results))
    if options.document:
        image = f"![{_CAPTION}](images/{_PICTURE.name})"
        _DOCUMENT.write_text(document_with(f"{image}\n\n{text}\n", _DOCUMENT, "emulated engines"))
        _PICTURE.write_text(picture(results))
    if results.failures:
        sys.exit(1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="emulated_fleet.sh", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    usual = [name for name, trace in TRACES.items() if trace.replicas == 1]
    parser.add_argument("--traces", default=",".join(usual), help="names; default: all for a single proxy")
    parser.add_argument("--engines", default=",".join(map(str, _SIZES)), help="sizes of fleets; default %(default)s")
    parser.add_argument("--targets", default=",".join(DEFAULT_TARGETS), help="default %(default)s")
    parser.add_argument("--seeds", default="1", help="one run for each; default %(default)s")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="most of each run; default %(default)s")
    parser.add_argument("--requests", type=int, default=_MOST_REQUESTS, help="most of each run; default %(default)s")
    parser.add_argument(
        "--json", type=Path, default=Path("emulated_fleet.json"), help="file for all figures, updated each run"
    )
    parser.add_argument("--svg", type=Path, help="file for a picture")
    parser.add_argument("--document", action="store_true", help="write docs/balancing-figures.md and its picture")
    parser.add_argument("--tables-of", type=Path, help="run nothing; print the tables of a --json file")
    parser.add_argument("--list", action="store_true", help="run nothing; print the names of all traces")
    options = parser.parse_args()
    if options.list:
        print("\n".join(f"{name:24}{trace.about}" for name, trace in TRACES.items()))
        sys.exit()
    try:
        _check(options)
    except ValueError as error:
        parser.error(str(error))
    return options


def _check(options: Any) -> None:
    """Replace names by what they name. Raises ValueError with a message that says what to do."""
    traces, sizes = traces_named(options.traces), numbers("--engines", options.engines)
    options.seeds = numbers("--seeds", options.seeds)
    if options.seconds <= 0 or options.requests <= 0:
        raise ValueError("--seconds and --requests must be positive")
    options.cases = cases_of(traces, sizes, options.seconds)
    options.targets = [(name, proxy_named(name)) for name in options.targets.split(",")]


def _measured(options: Any) -> Results:
    targets = [target for _, target in options.targets if target is not None]
    for name, target in options.targets:
        if target is None:
            print(f"{name} is not available: leaving it out", file=sys.stderr)
    if not targets:
        sys.exit("nothing to measure")
    cases: dict[str, Case] = options.cases
    results = Results(about(targets, pace=1) | {"seconds": options.seconds, "seeds": options.seeds}, len(options.seeds))
    turns = list(turns_of(len(options.seeds), list(cases), targets))
    run_all(
        turns,
        lambda turn: _run(turn, cases[turn.workload], options),
        lambda turn: cases[turn.workload].trace.seconds + _OVERHEAD_SECONDS,
        results,
        options.json,
    )
    return results


def _run(turn: Turn, case: Case, options: Any) -> dict[str, Any]:
    """One case through a new proxy in front of new engines."""
    plan = Play(0, MODEL, case.trace.seconds, options.requests)
    with running_fleet(case.engines, MODEL) as fleet:
        before = fleet.report()
        run = measured(turn.target.own_proxy, fleet, case.trace, case.sessions(options.seeds[turn.repetition]), plan)
        after = fleet.report()
    used = (after.cpu_seconds - before.cpu_seconds) / run.played.seconds
    return figures_of(run, case.trace.warm_up) | {"engines_cpu_share": used, "late_p99_ms": after.late_ms(0.99)}


if __name__ == "__main__":
    main()
