"""A tier gets what lower tiers have no room for, and a backend that takes any model gets what others cannot serve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from inference_engine_proxy_server.dispatch.leases import Lease
from inference_engine_proxy_server.requests.prompt import read_prompt
from inference_engine_proxy_server.requests.token_sizes import TokenSizes
from inference_engine_proxy_server.routing.affinity import Affinity
from inference_engine_proxy_server.routing.placement import Placement
from inference_engine_proxy_server.routing.policies import POLICIES
from inference_engine_proxy_server.routing.prompt_router import PromptRouter
from inference_engine_proxy_server.routing.requirements import Requirements
from support.clocked_pool import LOADING, Clock, lease_of, make_pool, publish, ready, refusal, suspend
from support.pools import Pool

CHAT = "/v1/chat/completions"


@pytest.fixture
def clock() -> Clock:
    return Clock()


def tiered(clock: Clock, *tiers: int, slots: int = 2, **config: Any) -> Pool:
    """A pool of ready backends of these tiers, each with ``slots`` slots."""
    pool = make_pool(clock, len(tiers), configs=[{"tier": tier, **config} for tier in tiers])
    for at in range(len(tiers)):
        publish(pool, at, replace(ready(), capacity=slots))
    return pool


def chosen(leases: Sequence[Lease], pool: Pool) -> list[int]:
    return [pool.backends.index(lease.backend) for lease in leases]


@pytest.mark.parametrize("policy", [name for name in POLICIES if name != "expected_time"])  # it weighs tiers
def test_the_next_tier_gets_the_overflow_and_work_returns_when_the_first_has_room(clock: Clock, policy: str) -> None:
    pool = tiered(clock, 2, 1, 1, 3)
    requirements = policy_requirements(policy)
    leases = [granted(pool, requirements) for _ in range(8)]

    found = chosen(leases, pool)
    assert sorted(found[:4]) == [1, 1, 2, 2]
    assert found[4:] == [0, 0, 3, 3]
    assert pool.lease(requirements) is None
    leases[1].close()
    assert chosen([granted(pool, requirements)], pool) == [found[1]]


def test_a_doubtful_or_cold_backend_of_the_first_tier_goes_before_the_second_tier(clock: Clock) -> None:
    pool = tiered(clock, 1, 2)
    clock.now += 7
    publish(pool, 0, replace(ready(processing=None), capacity=2))  # its report of the load is old
    publish(pool, 1, replace(ready(), capacity=2))
    assert pool.backends[0].is_last_choice
    assert chosen([lease_of(pool)], pool) == [0]


def test_the_second_tier_works_while_the_first_does_not(clock: Clock) -> None:
    pool = tiered(clock, 1, 2)
    suspend(pool, 0)
    assert chosen([lease_of(pool), lease_of(pool)], pool) == [1, 1]


def test_weights_share_requests_within_a_tier_only(clock: Clock) -> None:
    pool = tiered(clock, 1, 1, 2, slots=9)
    pool.backends[0].configure(replace(pool.backends[0].config, weight=2))
    pool.placement.on_reviewed(pool.backends[0])
    found = chosen([lease_of(pool) for _ in range(9)], pool)
    assert [found.count(at) for at in range(3)] == [6, 3, 0]


def test_a_conversation_returns_to_the_first_tier_but_a_required_home_is_kept(clock: Clock) -> None:
    pool = tiered(clock, 1, 2)
    usual = Affinity(None, b"stream", pool.backends[1], creates_response=False, deletes=False)
    required = replace(usual, resource=b"resource")
    assert chosen([granted(pool, Requirements("m", affinity=usual)) for _ in range(3)], pool) == [0, 0, 1]
    assert chosen([granted(pool, Requirements("m", affinity=required))], pool) == [1]


@pytest.mark.parametrize(("wait_seconds", "place"), [(4.0, 0), (12.0, 1)])
def test_expected_time_waits_as_long_as_the_penalty_before_it_uses_the_next_tier(
    clock: Clock, wait_seconds: float, place: int
) -> None:
    pool = tiered(clock, 1, 2, slots=8)
    placement = Placement(
        pool.fleet, PromptRouter(pool.placement.router.policies, 2**20, clock), tier_penalty_seconds=8
    )
    busy = placement.candidates[0]
    busy.work.send(wait_seconds * busy.work.reads, clock(), is_streamed=False)
    choice = placement.choose(policy_requirements("expected_time"))
    assert choice is not None
    assert pool.backends.index(choice.candidate.backend) == place


def test_expected_time_compares_a_tier_with_the_first_one_that_is_free(clock: Clock) -> None:
    pool = tiered(clock, 2, 2, slots=8)
    placement = Placement(
        pool.fleet, PromptRouter(pool.placement.router.policies, 2**20, clock), tier_penalty_seconds=100
    )
    choice = placement.choose(policy_requirements("expected_time"))
    assert choice is not None
    assert choice.rows is not None
    at = POLICIES["expected_time"].terms.index("tier")
    assert [row[at] for row in choice.rows] == [0, 0]


def test_a_backend_that_takes_any_model_serves_names_that_others_list(clock: Clock) -> None:
    pool = make_pool(clock, 3, configs=[{}, {"tier": 2, "takes_any_model": True}, {}])
    for at, model in enumerate("abc"):
        publish(pool, at, replace(ready(models=[model]), capacity=1))
    assert chosen([lease_of(pool, "a"), lease_of(pool, "a"), lease_of(pool, "c")], pool) == [0, 1, 2]


def test_a_backend_that_takes_any_model_serves_names_that_no_backend_lists_any_more(clock: Clock) -> None:
    pool = make_pool(clock, 2, configs=[{}, {"takes_any_model": True}])
    publish(pool, 0, ready(models=["a"]))
    publish(pool, 1, ready(models=["b"]))
    assert chosen([lease_of(pool, "unheard of")], pool) == [1]
    publish(pool, 0, ready(models=["new"]))
    assert chosen([lease_of(pool, "a")], pool) == [1]


def test_a_backend_that_takes_any_model_serves_while_the_models_of_others_are_unknown(clock: Clock) -> None:
    pool = make_pool(clock, 2, configs=[{}, {"takes_any_model": True}])
    publish(pool, 0, LOADING)
    publish(pool, 1, ready(models=["b"]))
    assert chosen([lease_of(pool, "a")], pool) == [1]


def test_without_a_backend_that_takes_any_model_unknown_names_are_rejected(clock: Clock) -> None:
    pool = tiered(clock, 1, 2)
    assert refusal(pool, "other")[0] == 404


def policy_requirements(policy: str) -> Requirements:
    found = POLICIES[policy]
    if not found.reads_prompts:
        return Requirements("m")
    body = b'{"model": "m", "messages": [{"role": "user", "content": "hello"}]}'
    prompt = read_prompt(CHAT.encode(), CHAT, b"content-type: application/json\r\n", body, TokenSizes())
    return Requirements("m", prompt=prompt, policy=found)


def granted(pool: Pool, requirements: Requirements) -> Lease:
    lease = pool.lease(requirements)
    assert lease is not None
    return lease
