"""All traces of use cases with their seeds, fixed before `expected_time` was changed for them.

Every use case runs on four fleets: 2, 8 and 32 llama.cpp servers, and 8 vLLM servers. Load is such that
``least_requests`` keeps most slots busy without a growing queue. Sessions begin within ``seconds`` and are played to
their end, so that every policy gets the same requests, and the time until the last answer can be compared. Everything
counts, also the time in which caches are cold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from simulation.trace import Absence, Trace
from simulation.use_cases import batch, coding, documents, groups, open_webui, short_questions, tenants
from simulation.workloads import Workload, together

__all__ = ["USE_CASES"]

_SECONDS = 40.0
_HELD_OUT = (1001, 1002)


class _Fleet(NamedTuple):
    """A fleet; ``power``: how many llama.cpp servers handle as many conversations as one of its servers."""

    engine: str
    backends: int
    power: float
    seeds: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.backends}-{self.engine.replace('.', '')}"


class _UseCase(NamedTuple):
    """A use case; ``sessions``: its workload for a fleet as powerful as that many llama.cpp servers, of this size."""

    name: str
    about: str
    sessions: Callable[[float, int], Workload]
    replicas: int = 1
    absence: Absence | None = None
    slowness: float = 1.0
    slot_context: int = 32_768


_FLEETS = (
    _Fleet("llama.cpp", 2, 1.0, tuple(range(1, 17))),
    _Fleet("llama.cpp", 8, 1.0, tuple(range(1, 9))),
    _Fleet("llama.cpp", 32, 1.0, (1, 2, 3, 4)),
    _Fleet("vllm", 8, 14.0, (1, 2, 3)),
)


def _groups(power: float, backends: int) -> Workload:
    return groups(0.4 * power, max(4, backends))


_USE_CASES = (
    _UseCase("groups", "groups of conversations that share a system prompt", _groups),
    _UseCase(
        "mixed",
        "as groups, and 30 % of all requests are short ones that share nothing",
        lambda power, backends: together(groups(0.35 * power, max(4, backends)), short_questions(0.6 * power)),
    ),
    _UseCase(
        "skewed",
        "as groups, but 70 % of the conversations are in one group",
        lambda power, backends: groups(0.4 * power, max(4, backends), first_share=0.7),
    ),
    _UseCase(
        "killed",
        "as groups; one engine is killed after 12 s and comes back cold after 26 s",
        lambda power, backends: groups(0.3 * power, max(4, backends)),
        absence=Absence(1, 12.0, 26.0, is_killed=True),
    ),
    _UseCase(
        "coding",
        "coding agents with long contexts, and their title requests",
        lambda power, backends: coding(round(2.5 * backends * (power / backends) ** 0.45)),
        slot_context=65_536,
    ),
    _UseCase(
        "webui",
        "chats in Open WebUI with its background requests",
        lambda power, backends: open_webui(0.24 * power),  # noqa: ARG005
    ),
    _UseCase(
        "documents",
        "questions about shared documents",
        lambda power, backends: documents(0.42 * power, 6 * backends),
    ),
    _UseCase(
        "tenants",
        "many tenants with system prompts of their own",
        lambda power, backends: tenants(0.3 * power, 10 * backends),
    ),
    _UseCase(
        "batch",
        "a long batch beside chats",
        lambda power, backends: together(tenants(0.12 * power, 4), batch(round(1.5 * power), 10)),  # noqa: ARG005
    ),
    _UseCase("slow", "as groups; one engine is half as fast", _groups, slowness=2.0),
    _UseCase(
        "joining", "as groups; one engine joins after 15 s with a cold cache", _groups, absence=Absence(1, 0.0, 15.0)
    ),
    _UseCase("replicas", "as groups, behind four replicas that share nothing", _groups, replicas=4),
)


def _all() -> Iterator[Trace]:
    for case in _USE_CASES:
        for fleet in _FLEETS:
            yield Trace(
                f"{case.name}-{fleet.name}",
                case.about,
                fleet.engine,
                fleet.backends,
                case.sessions(fleet.power * fleet.backends, fleet.backends),
                replicas=case.replicas,
                seconds=_SECONDS,
                warm_up=0.0,
                seeds=fleet.seeds,
                slowness={1: case.slowness} if case.slowness > 1 else {},
                absence=case.absence,
                finishes=True,
                slot_context=case.slot_context,
                held_out_seeds=_HELD_OUT,
            )


USE_CASES = {trace.name: trace for trace in _all()}
