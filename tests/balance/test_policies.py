"""The models of other proxies' policies behave as their sources specify."""

from __future__ import annotations

from itertools import count
from random import Random

import pytest

from simulation.policies.base import Policy, ReplicaView, Site
from simulation.policies.cache_aware import Smg, VllmRouter
from simulation.policies.llm_d import StickyUntilSaturated
from simulation.policies.plain import LeastConnections, Rendezvous, RoundRobin
from simulation.requests import Request, Segment
from simulation.virtual_loop import virtual_loop

_numbers = count(1)
_SYSTEM = Segment(0, 1000)


def _site(backends: int = 4) -> Site:
    def send(request: Request, backend: int) -> None:
        del request, backend

    return Site(ReplicaView.of(backends), virtual_loop(), Random(1), "vllm", send)


def _request(*prompt: Segment, session: str | None = None) -> Request:
    return Request(next(_numbers), prompt, Segment(next(_numbers), 10), session=session)


def _question(tokens: int = 100) -> Segment:
    return Segment(next(_numbers), tokens)


def _choice(policy: Policy, request: Request) -> int:
    chosen = policy.choose(request, policy.site.view, 0.0)
    assert chosen is not None
    policy.sent(request, chosen, 0.0)
    policy.site.view.in_flight[chosen] += 1
    return chosen


@pytest.mark.parametrize("kind", [Smg, VllmRouter, StickyUntilSaturated])
def test_a_known_prefix_goes_to_the_same_backend(kind: type[Policy]) -> None:
    policy = kind(_site())
    policy.random.random()  # skips this seed's first draw, with which llm-d would explore
    home = _choice(policy, _request(_SYSTEM, _question()))

    assert {_choice(policy, _request(_SYSTEM, _question())) for _ in range(20)} == {home}


@pytest.mark.parametrize("kind", [Smg, VllmRouter])
def test_a_prefix_below_the_threshold_is_ignored(kind: type[Policy]) -> None:
    policy = kind(_site())
    home = _choice(policy, _request(_SYSTEM, _question(3000)))

    assert _choice(policy, _request(_SYSTEM, _question(3000))) != home


@pytest.mark.parametrize("kind", [Smg, VllmRouter])
def test_a_prefix_leaves_a_backend_with_64_more_requests(kind: type[Policy]) -> None:
    policy = kind(_site())
    home = _choice(policy, _request(_SYSTEM, _question()))
    policy.site.view.in_flight[home] = 64
    assert _choice(policy, _request(_SYSTEM, _question())) == home

    policy.site.view.in_flight[home] = 100
    assert _choice(policy, _request(_SYSTEM, _question())) != home


def test_smg_uses_the_less_loaded_backend_with_the_prefix() -> None:
    policy = Smg(_site())
    homes = {_choice(policy, _request(_SYSTEM, _question()))}
    policy.site.view.in_flight[next(iter(homes))] = 100
    second = _choice(policy, _request(_SYSTEM, _question()))

    assert _choice(policy, _request(_SYSTEM, _question())) == second


def test_llm_d_leaves_a_backend_that_would_begin_18_seconds_later() -> None:
    policy = StickyUntilSaturated(_site(2))
    home = _choice(policy, _request(_SYSTEM, _question()))
    _choice(policy, _request(_question(14_000)))
    for _ in range(25):
        request = _request(_question(14_000))
        policy.choose(request, policy.site.view, 0.0)
        policy.sent(request, home, 0.0)

    assert _choice(policy, _request(_SYSTEM, _question())) != home


def test_llm_d_counts_a_prompt_until_its_first_token() -> None:
    policy = StickyUntilSaturated(_site(2))
    first = _request(_question(1000))
    taken = _choice(policy, first)
    assert _choice(policy, _request(_question(500))) != taken

    policy.first_token(first, taken, 1.0)

    assert _choice(policy, _request(_question(500))) == taken


def test_session_stays_when_another_backend_leaves() -> None:
    policy = Rendezvous(_site(8))
    homes = {name: _choice(policy, _request(_question(), session=name)) for name in map(str, range(50))}
    policy.site.view.is_up[3] = False

    moved = {name for name, home in homes.items() if _choice(policy, _request(_question(), session=name)) != home}

    assert moved == {name for name, home in homes.items() if home == 3}
    assert len(set(homes.values())) == 8


def test_round_robin_skips_unreachable_backends() -> None:
    policy = RoundRobin(_site(3))
    policy.site.view.is_up[1] = False

    assert {_choice(policy, _request(_question())) for _ in range(6)} == {0, 2}


def test_least_connections_takes_turns_among_equals() -> None:
    policy = LeastConnections(_site(3))

    assert [_choice(policy, _request(_question())) for _ in range(6)] == [0, 1, 2, 0, 1, 2]
    policy.site.view.in_flight[1] = 0
    assert _choice(policy, _request(_question())) == 1


def test_llm_d_forgets_a_prompt_that_was_lost() -> None:
    policy = StickyUntilSaturated(_site(2))
    first = _request(_question(1000))
    taken = _choice(policy, first)
    assert _choice(policy, _request(_question(500))) != taken

    policy.lost(first, taken, 1.0)

    assert _choice(policy, _request(_question(400))) == taken
