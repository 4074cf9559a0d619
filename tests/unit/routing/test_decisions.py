"""The content of decisions, and their JSON form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest

from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.routing.balancer import LAST_CHOICE
from inference_engine_proxy_server.routing.decisions import TIED, Decision, Ranked, Row
from inference_engine_proxy_server.routing.policies import LEAST_REQUESTS, POLICIES


@dataclass
class OneOf:
    config: BackendConfig


FLEET = [OneOf(BackendConfig(f"http://llm-{number}:80", f"llm-{number}")) for number in range(12)]


def test_chosen_candidate_comes_first_then_the_others_best_first() -> None:
    rows = [(0.3,), (0.1,), (), (0.2,)]
    decision = Decision(POLICIES["power_of_two"], FLEET[:4], rows, FLEET[3]).as_json()
    assert [one["name"] for one in decision["candidates"]] == ["llm-3", "llm-1", "llm-0", "llm-2"]
    assert [one.get("load") for one in decision["candidates"]] == [0.2, 0.1, 0.3, None]
    assert (decision["policy"], decision["chosen"], decision["left_out"]) == ("power_of_two", "llm-3", 0)


def test_highest_is_best_where_most_wins() -> None:
    decision = Decision(POLICIES["rendezvous"], FLEET[:3], [(0.5,), (0.9,), (0.7,)], FLEET[1]).as_json()
    assert [one["weight"] for one in decision["candidates"]] == [0.9, 0.7, 0.5]


def test_number_of_listed_candidates_is_bounded() -> None:
    decision = Decision(LEAST_REQUESTS, FLEET, Ranked(range(12), [1.0] * 12), FLEET[11]).as_json(3)
    assert [one["name"] for one in decision["candidates"]] == ["llm-11", "llm-0", "llm-1"]
    assert decision["left_out"] == 9


def test_least_requests_decision_has_load_share_and_rank_at_the_choice() -> None:
    ranks = [6.0, LAST_CHOICE + 1.0, math.inf]
    decision = Decision(LEAST_REQUESTS, FLEET[:3], Ranked(ranks, [2.0, 0.5, 1.0]), FLEET[0])
    ranks[0] = 7.0
    assert decision.as_json()["candidates"] == [
        {"name": "llm-0", "load": 3.0, "cost": 2.0, "rank": 6.0},
        {"name": "llm-1", "load": 2.0, "cost": 0.5, "rank": LAST_CHOICE + 1.0},
        {"name": "llm-2", "load": None, "cost": 1.0, "rank": None},
    ]


@pytest.mark.parametrize(
    ("policy", "rows", "reason"),
    [
        ("power_of_two", [(0.0,), (2.0,), ()], "fewer requests of 2 (0 requests)"),
        ("round_robin", [(math.inf,), (4.0,), (2.0,)], "its turn of 3"),
        ("round_robin", [(8.0,), (4.0,), (2.0,)], "its turn of 3 (idle for 8 s)"),
        ("rendezvous", [(0.9,), (0.5,), (0.7,)], "highest hash of the prompt of 3"),
        ("power_of_two", [(0.0,), (), ()], "the only one that could be chosen"),
        ("power_of_two", [(), (), ()], "fewer requests"),
    ],
)
def test_reason_is_in_words(policy: str, rows: list[Row], reason: str) -> None:
    assert Decision(POLICIES[policy], FLEET[:3], rows, FLEET[0]).reason == reason


def test_reason_tells_ties_and_leaves_full_backends_out() -> None:
    decision = Decision(LEAST_REQUESTS, FLEET[:4], Ranked([2.0, 2.0, 5.0, math.inf], [1.0] * 4), FLEET[0])

    assert decision.reason == "fewest requests, 2 of 3 tied (2 requests)"


def test_reason_tells_failures_elsewhere() -> None:
    decision = Decision(TIED, FLEET[:1], [()], FLEET[0], failures={"llm-3": "backend_timeout"})

    assert decision.reason == "it holds what the request names, after a failure elsewhere"


def test_long_model_name_is_cut() -> None:
    decision = Decision(TIED, FLEET[:1], [()], FLEET[0], model="m" * 10_000).as_json()
    assert decision["model"] == "m" * 200
    assert decision["candidates"] == [{"name": "llm-0"}]
