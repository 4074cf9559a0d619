from collections import Counter
from dataclasses import dataclass

import pytest

from inference_engine_proxy_server.core.balancer import choose_backend


@dataclass(frozen=True)
class Place:
    name: str
    load: float
    load_is_stale: bool = False


@pytest.mark.parametrize(
    ("candidates", "chosen"),
    [
        ([Place("only", 9)], "only"),
        ([Place("a", 2), Place("b", 1), Place("c", 3)], "b"),
        ([Place("stale but idle", 0, load_is_stale=True), Place("fresh and busy", 5)], "fresh and busy"),
        ([Place("a", 3, load_is_stale=True), Place("b", 2, load_is_stale=True)], "b"),
    ],
)
def test_lowest_fresh_load_wins(candidates: list[Place], chosen: str) -> None:
    assert choose_backend(candidates).name == chosen


def test_ties_fall_at_random_over_all_who_tie() -> None:
    candidates = [Place("a", 1), Place("b", 1), Place("loaded", 2), Place("c", 1)]
    wins = Counter(choose_backend(candidates).name for _ in range(600))
    assert set(wins) == {"a", "b", "c"}
    assert min(wins.values()) > 120  # 200 expected each; 120 is seven standard deviations away


def test_the_draw_is_among_those_who_tie_only() -> None:
    candidates = [Place("a", 1), Place("loaded", 2), Place("b", 1)]
    assert choose_backend(candidates, draw=lambda: 0.0).name == "a"
    assert choose_backend(candidates, draw=lambda: 0.999).name == "b"
