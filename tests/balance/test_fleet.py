"""Runs are reproducible, and agree with results known from theory."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import msgspec
import pytest

from balance.watched import fresh, sent
from simulation.catalogue import TRACES
from simulation.figures import Figures, figures_of
from simulation.fleet import run
from simulation.llamacpp_engine import LlamaCppEngine, LlamaCppSize
from simulation.policies import POLICIES
from simulation.replica_traces import REPLICA_TRACES
from simulation.requests import Request, Segment, common_tokens
from simulation.trace import Absence, Aside, Session, Trace, Turn
from simulation.use_case_traces import USE_CASES
from simulation.virtual_loop import virtual_loop
from simulation.workloads import chat, mixed


def _figures(trace: Trace, policy: str) -> Figures:
    return figures_of([run(trace, POLICIES[policy], seed) for seed in trace.seeds], trace.backends)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_same_seed_gives_the_same_run(policy: str) -> None:
    trace = replace(TRACES["agents-16-vllm-high"], seconds=15.0, warm_up=0.0)

    assert run(trace, POLICIES[policy], 7) == run(trace, POLICIES[policy], 7)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_request_is_answered_despite_backend_outages(policy: str) -> None:
    trace = Trace(
        "leaving", "", "llama.cpp", 3, mixed(0.8), 2, 60.0, 0.0, slowness={0: 2.0}, absence=Absence(1, 10.0, 30.0)
    )
    asked = len(trace.sessions(Random("trace 1"), 60.0))

    outcomes = run(trace, POLICIES[policy], 1).outcomes

    assert asked - 1 <= len(outcomes) <= asked, "who comes in the last moment may be too late"
    assert not [each for each in outcomes if each.backend == 1 and 10.1 < each.arrived_at < 29.0]
    assert [each for each in outcomes if each.backend == 1 and each.arrived_at > 32.0]


@pytest.mark.parametrize("policy", POLICIES)
def test_requests_of_a_killed_engine_are_sent_again(policy: str) -> None:
    trace = replace(USE_CASES["killed-8-llamacpp"], seconds=30.0)
    asked = sum(len(session.turns) for session in trace.sessions(Random("trace 1"), 30.0))
    assert trace.absence is not None
    killed, begin, end = trace.absence.backend, trace.absence.begin, trace.absence.end

    outcomes = run(trace, POLICIES[policy], 1).outcomes

    assert len(outcomes) == asked, "no request is lost for good"
    assert not [each for each in outcomes if each.backend == killed and begin < each.arrived_at < end - 1.0]
    assert [each for each in outcomes if each.arrived_at < begin < each.arrived_at + each.whole - 0.5]


@pytest.mark.parametrize("policy", ["random", "round_robin", "nginx", "smg", "least_requests"])
def test_an_engine_gets_nothing_before_it_joins(policy: str) -> None:
    trace = replace(USE_CASES["joining-8-llamacpp"], seconds=25.0)
    assert trace.absence is not None

    outcomes = run(trace, POLICIES[policy], 1).outcomes

    at_joining = [each for each in outcomes if each.backend == trace.absence.backend]
    assert at_joining
    assert min(each.arrived_at + each.first_token for each in at_joining) > trace.absence.end


@pytest.mark.parametrize("name", ["webui-2-llamacpp", "coding-2-llamacpp", "batch-2-llamacpp"])
def test_every_request_of_a_session_is_sent_once_whatever_the_policy(name: str) -> None:
    trace = USE_CASES[name]
    turns = [turn for session in trace.sessions(Random("trace 1"), trace.seconds) for turn in session.turns]
    asked = sum(1 + len(turn.beside) + len(turn.after) for turn in turns)

    counts = {policy: len(run(trace, POLICIES[policy], 1).outcomes) for policy in ("random", "expected_time")}

    assert counts == {"random": asked, "expected_time": asked}


def test_background_requests_follow_one_after_another() -> None:
    system, question = Segment(1, 100), Segment(2, 50)
    after = tuple(Aside((Segment(number, 64),), Segment(number + 1, 20)) for number in (10, 20, 30))
    beside = (Aside((Segment(40, 64),), Segment(41, 5)),)
    turns = (Turn(0.0, (system, question), Segment(3, 30), None, beside, after),)
    trace = Trace("one", "", "vllm", 1, lambda random, seconds: [Session(0.0, turns, "one")], finishes=True)

    outcomes = sorted(run(replace(trace, warm_up=0.0), POLICIES["random"], 1).outcomes, key=lambda one: one.arrived_at)

    both, chain = outcomes[:2], outcomes[1:]
    assert [each.arrived_at for each in both] == [both[0].arrived_at] * 2
    assert sorted(each.prompt_tokens for each in both) == [64, 150]
    answered_at = next(each.arrived_at + each.whole for each in both if each.prompt_tokens == 150)
    for each in chain[1:]:
        assert each.arrived_at == pytest.approx(answered_at)
        answered_at += each.whole
    assert len(outcomes) == 5


def test_waiting_time_of_one_slot_matches_the_pollaczek_khinchine_formula() -> None:
    loop, random, at = virtual_loop(), Random(3), 0.0
    engine = LlamaCppEngine(loop, size=LlamaCppSize(slots=1, stored_tokens=0))
    lone = sent(engine, 0.0, (fresh(200),), answer=20)
    loop.run()
    seconds, load = lone.done_at, 0.7
    arrivals, clients = list[float](), []
    for _ in range(12_000):
        at += random.expovariate(load / seconds)
        arrivals.append(loop.time() + at)
        clients.append(sent(engine, arrivals[-1], (fresh(200),), answer=20))

    loop.run()

    waits = [client.done_at - arrival - seconds for client, arrival in zip(clients, arrivals, strict=True)]
    assert sum(waits) / len(waits) == pytest.approx(seconds * load / (2 * (1 - load)), rel=0.05)


def test_round_robin_beats_random_and_least_requests_beats_both() -> None:
    trace = replace(TRACES["mixed-4-llamacpp"], sessions=mixed(1.8), seconds=400.0)

    by_chance, in_turn, by_load = (_figures(trace, name).mean for name in ("random", "round_robin", "least_requests"))

    assert by_load < in_turn < by_chance


def test_loads_that_are_a_second_old_send_all_requests_to_one_backend() -> None:
    trace = replace(TRACES["mixed-16-vllm"], seconds=15.0, warm_up=3.0, seeds=(1,))

    assert _figures(trace, "least_polled").p99 > 2 * _figures(trace, "random").p99


def test_prefix_aware_policies_gain_from_shared_prefixes() -> None:
    trace = replace(TRACES["chat-16-vllm"], sessions=chat(5.0), backends=4, seconds=60.0, warm_up=20.0, seeds=(1,))

    assert _figures(trace, "llm_d").hit_rate > _figures(trace, "random").hit_rate + 0.1


def test_the_body_has_four_bytes_per_prompt_token() -> None:
    system, question = Segment(1, 400), Segment(2, 100)
    one = Request(1, (system, question), Segment(3, 10), max_tokens=256)
    other = Request(2, (system, Segment(4, 100)), Segment(5, 10))

    body, other_body = one.body(), other.body()

    assert msgspec.json.decode(body)["max_tokens"] == 256
    assert [message["role"] for message in msgspec.json.decode(body)["messages"]] == ["system", "user"]
    assert one.body_bytes <= len(body) < one.body_bytes + 200
    same = next(number for number, (a, b) in enumerate(zip(body, other_body, strict=False)) if a != b)
    assert same > 4 * common_tokens(one.prompt, other.prompt)


def test_replicas_that_share_nothing_lose_little_under_least_requests() -> None:
    one, eight = (
        _figures(replace(REPLICA_TRACES[f"prompts-16-vllm-x{count}"], seconds=14.0, seeds=(3,)), "least_requests")
        for count in (1, 8)
    )

    assert eight.p99 < 1.5 * one.p99  # without an estimate of what other replicas have sent, it is more than double
    assert eight.unevenness < 1.2


@pytest.mark.parametrize("policy", ["least_requests", "expected_time"])
def test_replicas_keep_conversations_whose_turns_they_get_in_turn(policy: str) -> None:
    alone, behind_four = (
        _figures(replace(REPLICA_TRACES[f"few-4-llamacpp-x{count}"], seeds=(1, 2)), policy) for count in (1, 4)
    )

    assert behind_four.hit_rate > alone.hit_rate - 0.12  # 20 points lower without a common rule
