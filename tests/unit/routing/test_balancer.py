from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from inference_engine_proxy_server.routing.balancer import LAST_CHOICE, choose


@dataclass(frozen=True)
class Place:
    name: str
    load: float
    is_last_choice: bool = False
    cost: float = 1.0


def choose_backend(places: Sequence[Place], draw: Callable[[], float] = random.random) -> Place:
    ranks = [place.load * place.cost + (LAST_CHOICE if place.is_last_choice else 0) for place in places]
    costs = [place.cost for place in places]
    return places[choose(ranks, costs if len(set(costs)) > 1 else None, draw)]


@pytest.mark.parametrize(
    ("candidates", "chosen"),
    [
        ([Place("only", 9)], "only"),
        ([Place("a", 2), Place("b", 1), Place("c", 3)], "b"),
        ([Place("stale but idle", 0, is_last_choice=True), Place("fresh and busy", 5)], "fresh and busy"),
        ([Place("a", 3, is_last_choice=True), Place("b", 2, is_last_choice=True)], "b"),
    ],
)
def test_lowest_fresh_load_wins(candidates: list[Place], chosen: str) -> None:
    assert choose_backend(candidates).name == chosen


def test_ties_are_broken_at_random_among_all_that_tie() -> None:
    candidates = [Place("a", 1), Place("b", 1), Place("loaded", 2), Place("c", 1)]
    wins = Counter(choose_backend(candidates).name for _ in range(600))
    assert set(wins) == {"a", "b", "c"}
    assert min(wins.values()) > 120  # 200 expected each; 120 is seven standard deviations away


@pytest.mark.parametrize("idle", [1, 5, 60])
def test_idle_backends_of_a_large_fleet_are_found_alike(idle: int) -> None:
    ranks = [0.0] * idle + [1.0, 2.0, LAST_CHOICE] * 20
    draw = random.Random(7).random
    wins = Counter(choose(ranks, None, draw) for _ in range(200 * idle))
    assert set(wins) == set(range(idle))
    assert min(wins.values()) > 130  # 200 expected each; that is five standard deviations away


def test_only_tied_backends_are_drawn() -> None:
    candidates = [Place("a", 1), Place("loaded", 2), Place("b", 1)]
    assert choose_backend(candidates, draw=lambda: 0.0).name == "a"
    assert choose_backend(candidates, draw=lambda: 0.999).name == "b"


def test_backend_of_twice_the_weight_gets_twice_the_requests() -> None:
    loads = {"large": 0, "small": 0}
    for _ in range(90):
        places = [Place("large", loads["large"], cost=0.5), Place("small", loads["small"], cost=1)]
        loads[choose_backend(places).name] += 1
    assert loads == {"large": 60, "small": 30}


def test_backend_at_a_tenth_of_its_share_gets_a_tenth_of_the_requests() -> None:
    back = Place("back", 1, cost=10)
    assert choose_backend([back, Place("usual", 9)]).name == "usual"
    assert choose_backend([back, Place("usual", 11)]).name == "back"


def test_ties_are_broken_by_shares() -> None:
    candidates = [Place("back", 0, cost=10), Place("loaded", 1), Place("usual", 0, cost=1)]
    draws = [number / 1100 for number in range(1100)]
    wins = Counter(choose_backend(candidates, draw=lambda at=at: at).name for at in draws)  # type: ignore[misc]
    assert wins["loaded"] == 0
    assert 99 <= wins["back"] <= 101


def test_last_choice_goes_last_at_any_cost() -> None:
    costly, last = Place("costly", 50, cost=100), Place("last", 0, is_last_choice=True, cost=0.01)
    assert choose_backend([last, costly]).name == "costly"
    assert choose_backend([costly, last]).name == "costly"


def test_order_of_candidates_does_not_matter() -> None:
    places = [Place("last", 0, is_last_choice=True), Place("c", 3, cost=0.5), Place("a", 1), Place("b", 2, cost=2)]
    for candidates in itertools.permutations(places):
        assert choose_backend(candidates).name == "a"
        assert choose_backend([place for place in candidates if place.name != "a"]).name == "c"


@pytest.mark.parametrize("tied", [2, 20, 63, 64, 65, 200, 256])
def test_ties_are_broken_evenly_in_large_fleets(tied: int) -> None:
    draw = random.Random(tied)
    names = draw.sample(range(256), tied)
    ranks = [0.0 if name in names else 1.0 for name in range(256)]
    wins = Counter(choose(ranks, None, draw.random) for _ in range(200 * tied))
    assert set(wins) == set(names)
    assert min(wins.values()) > 100  # 200 expected each; 100 is seven standard deviations away
    assert max(wins.values()) < 300
