"""After any sequence of events, the choice by load is one that a comparison of all backends could make."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inference_engine_proxy_server.dispatch.leases import Lease
from inference_engine_proxy_server.routing.balancer import COLD, LAST_CHOICE, TIER, choose
from inference_engine_proxy_server.routing.candidate import Candidate
from inference_engine_proxy_server.routing.candidate_set import CandidateSet
from inference_engine_proxy_server.routing.rank_table import RankTable
from inference_engine_proxy_server.routing.requirements import Requirements
from support.clocked_pool import Clock, make_pool, publish, ready, ready_pool, suspend
from support.pools import Pool

TIERS = (1, 1, 1, 1, 2, 2)
WEIGHTS = (1, 1, 2, 2, 1, 4)
CANDIDATES = ready_pool(Clock(), 20).placement.candidates
EVENTS = st.tuples(
    st.sampled_from(["lease", "lease", "lease", "release", "drain", "resume", "foreign", "slots", "fail"]),
    st.integers(0, len(TIERS) - 1),
    st.integers(0, 3),
)
RANKS = st.sampled_from(
    [0.0, 1.0, 1.5, 2.0, LAST_CHOICE, LAST_CHOICE + 1, TIER, TIER + 1, TIER + LAST_CHOICE, COLD, COLD + 2, math.inf]
)


def best_of(pool: Pool) -> list[Candidate]:
    """The candidates that tie for the lowest load, by comparing all."""
    open_ones = [
        (one.config.tier, one.backend.is_last_choice, one.load.total * one.cost, at)
        for at, one in enumerate(pool.placement.candidates)
        if one.backend.takes_requests and one.load.total < one.load.limit
    ]
    least = min((order[:3] for order in open_ones), default=None)
    return [pool.placement.candidates[order[3]] for order in open_ones if order[:3] == least]


def happen(pool: Pool, leases: list[Lease], event: str, at: int, number: int) -> None:
    """One event that concerns the backend at this position."""
    backend = pool.backends[at]
    if event == "lease":
        expected = best_of(pool)
        if expected:  # otherwise, a suspect may be the last resort
            found = pool.try_lease(Requirements("m"))
            assert found is not None
            assert found.choice.candidate in expected
            leases.append(found)
    elif event == "release" and leases:
        leases.pop(number % len(leases)).close()
    elif event in ("drain", "resume"):
        pool.set_draining(backend, is_draining=event == "drain")
    elif event == "foreign":
        publish(pool, at, replace(ready(float(number)), capacity=4), own_at_poll=0)
    elif event == "slots":
        publish(pool, at, replace(ready(0.0), capacity=number + 1))
    elif event == "fail" and not number:
        suspend(pool, at)


@pytest.mark.parametrize("drained", [0, 64], ids=["small", "large"])
@pytest.mark.parametrize("weights", [(), WEIGHTS], ids=["equal", "weighted"])
@given(events=st.lists(EVENTS, max_size=40))
@settings(max_examples=25)
def test_the_choice_is_always_one_of_the_least_loaded(
    drained: int, weights: Sequence[float], events: list[tuple[str, int, int]]
) -> None:
    count = len(TIERS) + drained
    pool = make_pool(Clock(), count, weights=weights, configs=[{"tier": tier} for tier in TIERS])
    for at in range(count):
        publish(pool, at, replace(ready(), capacity=4))
    for backend in pool.backends[len(TIERS) :]:
        pool.set_draining(backend)
    leases: list[Lease] = []
    for event in events:
        happen(pool, leases, *event)


@pytest.mark.parametrize("kind", [list, RankTable])
@given(ranks=st.lists(RANKS, min_size=1, max_size=40), seed=st.integers(0, 9), is_weighted=st.booleans())
def test_the_lowest_rank_is_found_in_fleets_of_any_size(
    kind: type[list[float]], ranks: list[float], seed: int, is_weighted: bool
) -> None:
    costs = [1.0 + at % 3 for at in range(len(ranks))] if is_weighted else None
    assert ranks[choose(kind(ranks), costs, random.Random(seed).random)] == min(ranks)


@pytest.mark.parametrize("kind", [list, RankTable])
@pytest.mark.parametrize("size", [3, 16, 17, 256])
@pytest.mark.parametrize("least", [0.0, 2.0, LAST_CHOICE + 1])
@pytest.mark.parametrize("tied", [1, 3])
def test_ties_are_uniform_in_fleets_of_any_size(kind: type[list[float]], size: int, least: float, tied: int) -> None:
    ranks = [least + 1 + at % 2 for at in range(size)]
    places = random.Random(size).sample(range(size), tied)
    for at in places:
        ranks[at] = least
    draw = random.Random(7).random
    table = kind(ranks)
    wins = Counter(choose(table, None, draw) for _ in range(300 * tied))
    assert set(wins) == set(places)
    assert min(wins.values()) > 210  # 300 expected each; that is more than five standard deviations away


@given(ranks=st.lists(RANKS, max_size=len(CANDIDATES)), of_all_tiers=st.booleans())
def test_preferred_candidates_are_the_free_ones_of_the_best_kind(ranks: list[float], of_all_tiers: bool) -> None:
    candidates = CANDIDATES[: len(ranks)]
    kinds = [(rank % TIER if of_all_tiers else rank) // LAST_CHOICE for rank in ranks]
    free = [kind for kind, rank in zip(kinds, ranks, strict=True) if rank < math.inf]
    expected = [
        one for one, kind, rank in zip(candidates, kinds, ranks, strict=True) if rank < math.inf and kind == min(free)
    ]
    found = CandidateSet(candidates, ranks).preferred(of_all_tiers=of_all_tiers)
    assert found == expected
    assert found is not candidates  # callers add to it
