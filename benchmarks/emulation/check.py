"""Checks the emulated engines: plays the same traces with real llama.cpp servers and with emulated ones.

    benchmarks/emulation_check.sh [--traces NAMES] [--targets NAMES] [--seeds NUMBERS] [--seconds S] [--scale PART]
                                  [--rate FACTOR] [--json FILE]

There are as many real engines as cores, each pinned to one, with a model of random weights. Their speeds are measured
first; the emulated engines get these speeds. Ends with status 1 if a difference exceeds its goal.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from completions.answers import Failed
from emulation.calibration import TINY, calibrated, speeds_of
from emulation.cases import Case
from emulation.comparison import EMULATED, REAL, comparison, is_within_goals
from emulation.engine import Intake
from emulation.fleet import running_fleet
from emulation.measurement import figures_of, measured
from emulation.options import numbers, traces_named
from emulation.player import Play
from emulation.targets import proxy_named
from simulation.catalogue import TRACES
from simulation.engine_spec import EngineSpec
from simulation.llamacpp_engine import RTX_4090_8B, LlamaCppSize
from simulation.requests import Prompt, Segment
from simulation.trace import Session, Trace
from suite.machine import about
from suite.repetitions import Turn, run_all, turns_of
from suite.results import Results
from support.tiny_gguf import ModelShape, write_tiny_gguf
from warm_prefixes.engines import engine_cores, running_engines
from warm_prefixes.plan import MODEL

_SHAPE = ModelShape(embedding=256, layers=4, context=4096, only_words=True)
_SLOTS, _SLOT_CONTEXT = 4, 4096
_OPTIONS = ("--slots", str(_SLOTS), "--context", str(_SLOTS * _SLOT_CONTEXT))
# The store's limit of 8 GiB is 2 million tokens of 4 KiB; copying one takes a microsecond.
_SIZE = LlamaCppSize(_SLOTS, _SLOT_CONTEXT, 2_097_152, 1e-6)
_SECONDS = 120.0
_OVERHEAD_SECONDS = 12.0
_SCALE = 0.125  # of all lengths, so that the longest prompts of the catalogue, 30,000 tokens, fit into a slot
_RATE = 2.0  # the real engines write so fast that with the catalogue's rates hardly any request would wait
_USUAL_CONTEXT = 1000  # tokens before a token that is read


@dataclass(frozen=True, slots=True)
class _Fleet:
    """The engines that are compared: real ones with ``model``, and emulated ones with the same speeds."""

    model: Path
    specs: list[EngineSpec]
    intakes: list[Intake]


def main() -> None:
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # raises, so that all processes are ended
    with tempfile.TemporaryDirectory() as folder:
        fleet = _fleet(write_tiny_gguf(Path(folder) / "model.gguf", _SHAPE))
        results = _measured(options, fleet)
    print(f"\n{comparison(results)}")
    if results.failures or not is_within_goals(results):
        sys.exit(1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="emulation_check.sh", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    usual = [name for name, trace in TRACES.items() if trace.engine != "vllm"]
    parser.add_argument("--traces", default=",".join(usual), help="default: all of llama.cpp")
    parser.add_argument(
        "--targets", default="inference-proxy/least_requests,inference-proxy/expected_time", help="default %(default)s"
    )
    parser.add_argument("--seeds", default="1", help="one run for each; default %(default)s")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="most of each run; default %(default)s")
    parser.add_argument("--scale", type=float, default=_SCALE, help="fraction of all lengths; default %(default)s")
    parser.add_argument(
        "--rate",
        type=float,
        default=_RATE,
        help="of sessions; 1: engines read as much of the time as the catalogue's; default %(default)s",
    )
    parser.add_argument("--json", type=Path, default=Path("emulation_check.json"), help="file for all figures")
    options = parser.parse_args()
    if min(options.seconds, options.rate) <= 0 or not 0 < options.scale <= _SCALE:
        parser.error(f"--seconds and --rate must be positive, and --scale between 0 and {_SCALE}")
    try:
        options.traces = {trace.name: trace for trace in traces_named(options.traces)}
        options.seeds = numbers("--seeds", options.seeds)
        options.targets = [(name, proxy_named(name)) for name in options.targets.split(",")]
    except ValueError as error:
        parser.error(str(error))
    return options


def _fleet(model: Path) -> _Fleet:
    """Measure the real engines."""
    print("measuring the speeds of the real engines, about half a minute", file=sys.stderr)
    with running_engines(model, engine_cores(), _OPTIONS) as engines:
        try:
            found = [speeds_of(each) for each in asyncio.run(calibrated(engines.ports, MODEL))]
        except Failed as error:
            sys.exit(f"an engine did not answer: {error}")
    for number, (speeds, intake) in enumerate(found):
        print(f"engine {number}: {speeds}, {intake}", file=sys.stderr)
    specs = [EngineSpec(speeds, llamacpp=_SIZE) for speeds, _ in found]
    return _Fleet(model, specs, [intake for _, intake in found])


def _measured(options: Any, fleet: _Fleet) -> Results:
    targets = [target for _, target in options.targets if target is not None]
    for name, target in options.targets:
        if target is None:
            print(f"{name} is not available: leaving it out", file=sys.stderr)
    if not targets:
        sys.exit("nothing to measure")
    speeds = [repr(spec.speeds) for spec in fleet.specs]
    results = Results(about(targets, pace=1) | {"seconds": options.seconds, "speeds": speeds}, len(options.seeds))
    workloads = [name + kind for name in options.traces for kind in (REAL, EMULATED)]
    run_all(
        list(turns_of(len(options.seeds), workloads, targets)),
        lambda turn: _run(turn, options, fleet),
        lambda _: options.seconds + _OVERHEAD_SECONDS,
        results,
        options.json,
    )
    return results


def _run(turn: Turn, options: Any, fleet: _Fleet) -> dict[str, Any]:
    name = turn.workload.removesuffix(REAL).removesuffix(EMULATED)
    trace = _fitted(options.traces[name], fleet.specs, options)
    sessions = Case(trace).sessions(options.seeds[turn.repetition])
    sessions = [_scaled(session, options.scale) for session in sessions]
    plan = Play(0, MODEL, trace.seconds, sys.maxsize, bounds_all=True)
    proxy = turn.target.own_proxy
    if turn.workload.endswith(REAL):
        with running_engines(fleet.model, engine_cores(), _OPTIONS) as engines:
            return figures_of(measured(proxy, engines, trace, sessions, plan), trace.warm_up)
    with running_fleet(fleet.specs, MODEL, TINY, fleet.intakes) as emulated:
        return figures_of(measured(proxy, emulated, trace, sessions, plan), trace.warm_up)


def _fitted(trace: Trace, specs: list[EngineSpec], options: Any) -> Trace:
    """The trace for these engines, whose reading takes ``options.rate`` times the share of time of the catalogue's."""
    speeds = [spec.speeds for spec in specs]
    per_token = sum(each.per_prompt_token + each.per_attended_token * _USUAL_CONTEXT for each in speeds) / len(speeds)
    rate = options.rate * RTX_4090_8B.per_prompt_token / (options.scale * per_token)
    fitted = trace.shortened(min(1.0, options.seconds / trace.seconds)).resized(len(specs)).at_rate(rate)
    return replace(fitted, absence=None, slowness={})


def _scaled(session: Session, scale: float) -> Session:
    """The same with shorter texts."""
    turns = (
        replace(turn, added=_shorter(turn.added, scale), answer=_shorter((turn.answer,), scale)[0])
        for turn in session.turns
    )
    return replace(session, turns=tuple(turns))


def _shorter(texts: Prompt, scale: float) -> Prompt:
    return tuple(Segment(text.number, max(1, round(text.tokens * scale))) for text in texts)


if __name__ == "__main__":
    main()
