"""Measures prefix reuse with real engines: plays the same conversations through each proxy, and prints tables.

    benchmarks/warm_prefixes.sh [--workloads NAMES] [--targets NAMES] [--repetitions N] [--quick] [--json FILE]

Starts a new llama.cpp server on each core, at most four, for every run, with a model of random weights, one thread and
two slots. A target is inference-proxy/POLICY, smg, vllm-router, nginx, or fixed, which uses no proxy: each group has an
engine of its own, or shares one if there are fewer.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from completions.answers import Message
from proxies.process import running
from proxies.proxy import Site, free_port
from simulation.report import document_with
from suite.machine import about
from suite.repetitions import run_all, turns_of
from suite.results import Results, read_results
from suite.targets import Target
from warm_prefixes.client import ask
from warm_prefixes.engines import Engines, engine_cores, running_engines, write_model
from warm_prefixes.figures import figures_of_run
from warm_prefixes.plan import SLOTS, WORKLOADS, Conversation, Plan, plan_of
from warm_prefixes.play import PortOf, play
from warm_prefixes.report import tables
from warm_prefixes.targets import DEFAULT_TARGETS, target_named

_SEED = 20261122
_RUN_SECONDS = 18.0  # estimate, corrected as runs finish
_SETTLE_SECONDS = 2.0  # enough for a proxy to poll all engines
_QUICK_WORKLOADS = ("groups", "killed")
_DOCUMENT = Path(__file__).parents[2] / "docs" / "balancing-figures.md"


def main() -> None:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # raises, so that all processes are ended
    results = read_results(options.tables_of) if options.tables_of else _measured(options)
    text = tables(results)
    print(f"\n{text}")
    if options.document:
        _DOCUMENT.write_text(document_with(f"{text}\n", _DOCUMENT, "real engines"))
    if results.failures:
        sys.exit(1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="warm_prefixes.sh", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--workloads", help=", ".join(WORKLOADS))
    parser.add_argument("--targets", default=",".join(DEFAULT_TARGETS), help="names, separated by commas")
    parser.add_argument("--repetitions", type=int, help="repetitions of each run; default 3, with --quick 1")
    parser.add_argument("--quick", action="store_true", help=f"only {' and '.join(_QUICK_WORKLOADS)}, once")
    parser.add_argument("--seed", type=int, default=_SEED, help="seed of the first repetition; others differ")
    parser.add_argument(
        "--json", type=Path, default=Path("warm_prefixes.json"), help="file for all figures, updated each run"
    )
    parser.add_argument("--document", action="store_true", help="write the tables into docs/balancing-figures.md")
    parser.add_argument("--tables-of", type=Path, help="run nothing; print the tables of a --json file")
    options = parser.parse_args()
    options.repetitions = options.repetitions or (1 if options.quick else 3)
    workloads = options.workloads.split(",") if options.workloads else _QUICK_WORKLOADS if options.quick else WORKLOADS
    options.workloads = list(workloads)
    for name in options.workloads:
        if name not in WORKLOADS:
            parser.error(f"{name!r} is none of {', '.join(WORKLOADS)}")
    try:
        options.targets = [(name, target_named(name)) for name in options.targets.split(",")]
    except ValueError as error:
        parser.error(str(error))
    return options


def _measured(options: argparse.Namespace) -> Results:
    if len(engine_cores()) < 2:
        sys.exit("needs two cores: each engine has a core of its own")
    for name, target in options.targets:
        if target is None:
            print(f"{name} is not available: leaving it out", file=sys.stderr)
    targets = [target for _, target in options.targets if target is not None]
    if not targets:
        sys.exit("nothing to measure")
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder))
        cold, warm = _alone(model)
        results = Results(
            about(targets, pace=1) | {"cold_seconds": cold, "warm_seconds": warm, "seed": options.seed},
            options.repetitions,
        )
        run_all(
            list(turns_of(options.repetitions, options.workloads, targets)),
            lambda turn: _run(plan_of(WORKLOADS[turn.workload], options.seed + turn.repetition), turn.target, model),
            lambda _: _RUN_SECONDS,
            results,
            options.json,
        )
    return results


def _run(plan: Plan, target: Target, model: Path) -> dict[str, Any]:
    """Play one plan through a new proxy in front of new engines."""
    with running_engines(model) as engines:
        if target.proxy is None:
            return _played(
                plan,
                engines,
                lambda conversation, failed: engines.ports[_own(conversation, failed, len(engines.ports))],
            )
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            site = Site(Path(folder), free_port(), engines.ports)
            with running(target.proxy, site):
                time.sleep(_SETTLE_SECONDS)
                return _played(plan, engines, lambda *_: site.port)


def _own(conversation: Conversation, failed: int, engines: int) -> int:
    """The fixed engine of a conversation's group or of a short request; after failures, the next engines in turn."""
    whose = conversation.number if conversation.group is None else conversation.group
    return (whose + failed) % engines


def _played(plan: Plan, engines: Engines, port_of: PortOf) -> dict[str, Any]:
    outage = plan.outage
    script = {}
    if outage is not None:
        script = {
            outage.begin: lambda: engines.leave(outage.engine),
            outage.end: lambda: engines.come_back(outage.engine),
        }
    before = engines.answers()
    served, seconds = play(plan, SLOTS * len(engines.ports), port_of, script)
    answers = [after - earlier for after, earlier in zip(engines.answers(), before, strict=True)]
    return figures_of_run(served, seconds, answers, plan.system_tokens)


def _alone(model: Path) -> tuple[float, float]:
    """Time to first token of a single request to an idle engine, with a cold and with a warm cache."""
    plan = plan_of(WORKLOADS["groups"], 0)
    with running_engines(model) as engines:

        def seconds(question: str) -> float:
            system: Message = {"role": "system", "content": plan.systems[0]}
            began = time.monotonic()
            return ask(engines.ports[0], [system, {"role": "user", "content": question}]).first_at - began

        return seconds("bal"), seconds("bel")


if __name__ == "__main__":
    main()
