"""Each proxy gets the same conversations, and a run's figures follow from its answers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from completions.answers import Answer
from suite.repetitions import turns_of
from suite.results import Failure, Results
from suite.targets import Target
from support.tiny_gguf import whole_words
from warm_prefixes.figures import ceiling, figures_of_run, spread_of
from warm_prefixes.plan import GROUPS, WORKLOADS, Conversation, Plan, plan_of
from warm_prefixes.play import Served
from warm_prefixes.report import tables
from warm_prefixes.targets import target_named

DOCUMENT = Path(__file__).parents[2] / "docs" / "balancing-figures.md"


@pytest.mark.parametrize("name", WORKLOADS)
def test_a_plan_depends_only_on_its_seed(name: str) -> None:
    assert plan_of(WORKLOADS[name], 7) == plan_of(WORKLOADS[name], 7)


def test_runs_with_different_seeds_share_no_prompt() -> None:
    one, other = (_prompts(plan_of(WORKLOADS["mixed"], seed)) for seed in (1, 2))

    assert not one & other


@pytest.mark.parametrize("name", WORKLOADS)
def test_groups_have_the_workloads_number_of_conversations(name: str) -> None:
    workload = WORKLOADS[name]
    plan = plan_of(workload, 7)
    members = Counter(conversation.group for conversation in plan.conversations)

    assert sum(workload.groups) == 24
    assert [members[group] for group in range(len(plan.systems))] == list(workload.groups)
    assert {len(each.questions) for each in plan.conversations if each.group is not None} == {4}


def test_three_in_ten_mixed_requests_are_short_and_interspersed() -> None:
    plan = plan_of(WORKLOADS["mixed"], 7)
    short = [place for place, each in enumerate(plan.conversations) if each.group is None]

    assert len(short) / plan.requests == pytest.approx(0.3, abs=0.01)
    assert max(plan.conversations[place].questions[0].count(" ") for place in short) < 100
    assert min(short) < len(plan.conversations) / 4
    assert max(short) > len(plan.conversations) * 3 / 4


def test_the_largest_skewed_group_has_seven_tenths_of_the_requests() -> None:
    groups = WORKLOADS["skewed"].groups

    assert max(groups) / sum(groups) == pytest.approx(0.7, abs=0.01)


def test_a_system_prompt_has_one_token_per_word() -> None:
    plan = plan_of(WORKLOADS["groups"], 7)

    assert {len(system.split(" ")) for system in plan.systems} == {plan.system_tokens}
    assert set(" ".join(plan.systems).split(" ")) <= set(whole_words())


def _prompts(plan: Plan) -> set[str]:
    questions = [question for conversation in plan.conversations for question in conversation.questions]
    return {*plan.systems, *questions}


def served(number: int, turn: int, group: int | None, answer: Answer, first_seconds: float = 1.0) -> Served:
    return Served(Conversation(number, group, ("?",) * 4), turn, answer, first_seconds, ())


def answer(prompt_tokens: int, cached_tokens: int = 0) -> Answer:
    return Answer("text", 0.0, prompt_tokens, cached_tokens, 24)


def test_the_ceiling_counts_all_earlier_prompts_and_answers_as_cached() -> None:
    first, second, next_turn, short = answer(2100), answer(2200), answer(2300), answer(50)
    run = [served(0, 0, 0, first), served(1, 0, 0, second), served(0, 1, 0, next_turn), served(2, 0, None, short)]

    known = 0 + 2000 + (2100 + 24) + 0
    assert ceiling(run, 2000) == pytest.approx(known / (2100 + 2200 + 2300 + 50))


def test_a_hit_rate_counts_tokens_not_requests() -> None:
    run = [served(0, 0, 0, answer(900, 900)), served(1, 0, None, answer(100, 0))]

    assert figures_of_run(run, 1.0, [1, 1], 2000)["hit_rate"] == pytest.approx(0.9)


def test_percentiles_failures_and_shares_of_a_run() -> None:
    run = [served(number, 0, None, answer(10), float(number)) for number in range(1, 101)]
    run[0] = Served(run[0].conversation, 0, run[0].answer, 1.0, ("502", "502", "broken off"))

    figures = figures_of_run(run, 9.0, [60, 30, 20, 10], 2000)

    assert [figures[f"first_p{part}"] for part in (50, 90, 99)] == [50, 90, 99]
    assert (figures["failures"], figures["failure_kinds"]) == (3, {"502": 2, "broken off": 1})
    assert figures["busiest_share"] == 0.5
    assert figures["wall_seconds"] == 9.0


def test_a_spread_ignores_runs_without_the_figure() -> None:
    spread = spread_of([{"x": 3}, None, {"x": 1}, {"x": 2}], "x")

    assert spread is not None
    assert (spread.median, min(spread.values), max(spread.values)) == (2, 1, 3)
    assert spread_of([None], "x") is None


def report(hit_rate: float, failures: int) -> dict[str, Any]:
    return {
        "requests": 96, "hit_rate": hit_rate, "ceiling": 0.9, "wall_seconds": 19.0, "first_p50": 0.5, "first_p90": 2.0,
        "first_p99": 3.0, "failures": failures, "busiest_share": 0.25,
    }  # fmt: skip


def results() -> Results:
    about = {
        "date": "2026-11-22", "commit": "abc", "cores": 2, "processor": "some", "cold_seconds": 1.0,
        "warm_seconds": 0.07, "versions": {"nginx": "1.22.1"},
    }  # fmt: skip
    found = Results(about, 3)
    for repetition, hit_rate in enumerate((0.76, 0.74, 0.79)):
        found.add(repetition, "groups", "nginx", report(hit_rate, repetition))
    return found


def test_a_table_shows_medians_with_their_range() -> None:
    lines = tables(results()).splitlines()

    assert lines[0].endswith("96 requests; one boundless cache would have 90%.")
    assert "| nginx | 76% (74%-79%) | 19.00 | 0.50 | 2.00 | 3.00 | 1 (0-2) | 25% |" in lines


def test_a_target_without_any_run_has_a_row_and_a_reason() -> None:
    found = results()
    found.failures.append(Failure(0, "groups", "smg", "did not start"))

    assert "* round 1, groups, smg: did not start" in tables(found).splitlines()


def test_a_workload_without_any_run_does_not_stop_the_report() -> None:
    assert "2026-11-22" in tables(Results(results().about, 1))


def test_all_workloads_have_the_same_number_of_groups() -> None:
    assert {len(workload.groups) for workload in WORKLOADS.values()} == {GROUPS}


def test_each_repetition_starts_with_a_different_target() -> None:
    targets = [Target("a", None), Target("b", None)]

    turns = [(turn.repetition, turn.workload, turn.target.name) for turn in turns_of(2, ["groups", "mixed"], targets)]

    assert turns == [
        (0, "groups", "a"),
        (0, "groups", "b"),
        (0, "mixed", "a"),
        (0, "mixed", "b"),
        (1, "groups", "b"),
        (1, "groups", "a"),
        (1, "mixed", "b"),
        (1, "mixed", "a"),
    ]


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(ValueError, match="'inference-proxy' is neither"):
        target_named("inference-proxy")


def test_the_document_has_markers_for_the_tables() -> None:
    page = DOCUMENT.read_text()

    assert page.count("<!-- real engines: begin -->\n") == page.count("<!-- real engines: end -->") == 1
