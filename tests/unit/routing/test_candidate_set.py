"""A candidate set finds the lowest rank without looking at the candidates."""

from __future__ import annotations

import math

import pytest

from inference_engine_proxy_server.routing.candidate import Candidate
from inference_engine_proxy_server.routing.candidate_set import CandidateSet
from support.clocked_pool import BUSY, Clock, publish, ready_pool, suspend
from support.pools import Pool


@pytest.fixture
def pool() -> Pool:
    return ready_pool(Clock(), 3, capacity=2)


def followed(pool: Pool) -> tuple[CandidateSet, list[Candidate]]:
    candidates = list(pool.placement.candidates)
    return CandidateSet.kept_up_to_date(candidates, None), candidates


def test_ranks_follow_the_leases(pool: Pool) -> None:
    found, candidates = followed(pool)
    first, second = pool.occupy(pool.backends[0]), pool.occupy(pool.backends[0])
    pool.occupy(pool.backends[1])
    assert found.ranks == [math.inf, 1, 0]
    assert found.free() == candidates[1:]
    first.close()
    second.close()
    assert found.ranks == [0, 1, 0]


def test_ranks_follow_the_rotation(pool: Pool) -> None:
    found, candidates = followed(pool)
    publish(pool, 0, BUSY)
    pool.set_draining(pool.backends[1])
    assert found.free() == [candidates[2]]
    assert repr(found).count("inf") == 2


def test_costs_count_only_while_they_are_uneven(pool: Pool) -> None:
    found, _ = followed(pool)
    assert found.uneven_costs is None
    found.set_cost(1, 2.0)
    assert found.uneven_costs == [1, 2, 1]
    found.set_cost(1, 1.0)
    assert found.uneven_costs is None


def test_slightly_full_candidates_exceed_their_limit_by_less_than_asked(pool: Pool) -> None:
    found, candidates = followed(pool)
    for at, leases in enumerate((1, 2, 4)):
        for _ in range(leases):
            pool.occupy(pool.backends[at])
    assert found.slightly_full(2) == [candidates[1]]
    assert found.slightly_full(3) == candidates[1:]


def test_suspended_candidate_is_never_slightly_full(pool: Pool) -> None:
    found, _ = followed(pool)
    pool.occupy(pool.backends[0])
    pool.occupy(pool.backends[0])
    suspend(pool, 0)
    assert found.slightly_full(2) == []
