"""The traces are fixed, so that results of different policies stay comparable."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from random import Random

import pytest

from simulation.catalogue import TRACES
from simulation.replica_traces import COUNTS, REPLICA_TRACES
from simulation.requests import token_count
from simulation.trace import Session, Trace
from simulation.use_case_traces import USE_CASES
from simulation.use_cases import batch, open_webui
from simulation.workloads import together

_OF_ONE_REPLICA = {name: trace for name, trace in REPLICA_TRACES.items() if trace.replicas == 1}
_ALL = TRACES | USE_CASES | _OF_ONE_REPLICA

_SECONDS = 8.0  # of each trace, to keep the tests fast

FIXED = {
    "agents-2-llamacpp": "58545d41d80d",
    "chat-4-llamacpp": "08cf26a123b2",
    "rag-4-llamacpp": "051236de1ad0",
    "mixed-4-llamacpp": "c7c50d8ae4ac",
    "returning-4-vllm": "c5a0ba9175da",
    "chat-16-vllm": "6f8de3cd8816",
    "chat-16-vllm-high": "fa88d9b5e444",
    "rag-16-vllm": "950c345b7d1c",
    "rag-16-vllm-high": "cd4a3887f65d",
    "agents-16-vllm": "cc2e87fc511d",
    "agents-16-vllm-high": "229cda390a5d",
    "mixed-16-vllm": "d52c495ad367",
    "bursts-16-vllm": "54e9b433b56a",
    "slow-16-vllm": "95b3c6f2a494",
    "skewed-16-vllm": "e66a6fcfc0fc",
    "hotspot-16-vllm": "c2b0e3aea1ce",
    "rag-64-vllm": "db8ec88cd0d0",
    "everything-64-vllm": "e469c929bbb2",
    "agents-200-vllm": "7766d04ff923",
    "mixed-200-vllm": "992b75645878",
}


FIXED_USE_CASES = {
    "groups-2-llamacpp": "00011f26aff1",
    "groups-8-llamacpp": "0f22cfa060a2",
    "groups-32-llamacpp": "117e9977e769",
    "groups-8-vllm": "d2613a7f137b",
    "mixed-2-llamacpp": "cd367247a2ac",
    "mixed-8-llamacpp": "1b59ed944512",
    "mixed-32-llamacpp": "5d6177fd6b51",
    "mixed-8-vllm": "6d344c6adad4",
    "skewed-2-llamacpp": "e6dffc696c38",
    "skewed-8-llamacpp": "15fc4c41edeb",
    "skewed-32-llamacpp": "a9bdc4a8d0c0",
    "skewed-8-vllm": "a52c8a4714dd",
    "killed-2-llamacpp": "ef21ece7c0be",
    "killed-8-llamacpp": "f05ecba057d1",
    "killed-32-llamacpp": "cb14a09735a8",
    "killed-8-vllm": "405943aefec6",
    "coding-2-llamacpp": "2abc09b38930",
    "coding-8-llamacpp": "b3d753474fac",
    "coding-32-llamacpp": "b2a21e003a2c",
    "coding-8-vllm": "0a62795882fc",
    "webui-2-llamacpp": "f0afd5e9fac5",
    "webui-8-llamacpp": "249c46812f07",
    "webui-32-llamacpp": "1fba3b0b97f3",
    "webui-8-vllm": "35c1d4bdcb0a",
    "documents-2-llamacpp": "7fb9376767db",
    "documents-8-llamacpp": "b8f6c1f0eae3",
    "documents-32-llamacpp": "ad4acf2f8cc0",
    "documents-8-vllm": "0e78dda76c3e",
    "tenants-2-llamacpp": "8d149f613bc2",
    "tenants-8-llamacpp": "e72ca3a028ca",
    "tenants-32-llamacpp": "d1122fb7c70c",
    "tenants-8-vllm": "4fe249f4b60a",
    "batch-2-llamacpp": "f6152e6dd3ea",
    "batch-8-llamacpp": "6e03f95b5b33",
    "batch-32-llamacpp": "4d2f56d7ff4a",
    "batch-8-vllm": "1cd8d62ce49e",
    "slow-2-llamacpp": "2677c9ea11f2",
    "slow-8-llamacpp": "341b0e4393bb",
    "slow-32-llamacpp": "27459784c591",
    "slow-8-vllm": "187f9c694740",
    "joining-2-llamacpp": "4f7f3a117802",
    "joining-8-llamacpp": "80766a2a64c1",
    "joining-32-llamacpp": "9a92ef3ad0f5",
    "joining-8-vllm": "70e795e9ff82",
    "replicas-2-llamacpp": "c900734a249a",
    "replicas-8-llamacpp": "d647d973a25e",
    "replicas-32-llamacpp": "5a98aa24d8dd",
    "replicas-8-vllm": "d59abc39eef7",
}

FIXED_REPLICA_TRACES = {
    "prompts-4-llamacpp-x1": "e02ddb98ac58",
    "prompts-16-vllm-x1": "c484613e2c88",
    "bursts-4-llamacpp-x1": "42f76933ccc9",
    "bursts-16-vllm-x1": "0aef8e1a2938",
    "chats-4-llamacpp-x1": "ba2b8494f2fc",
    "chats-16-vllm-x1": "2d1df5ef1547",
    "groups-4-llamacpp-x1": "b42731a12d9c",
    "groups-16-vllm-x1": "473b013d6bed",
    "shots-4-llamacpp-x1": "c40efcabcb9e",
    "shots-16-vllm-x1": "a13ed01fda9e",
    "few-4-llamacpp-x1": "82ad8c47c313",
    "few-16-vllm-x1": "b31f0280520e",
}


def test_every_trace_has_a_recorded_digest() -> None:
    assert list(TRACES) == list(FIXED)
    assert list(USE_CASES) == list(FIXED_USE_CASES)
    assert list(_OF_ONE_REPLICA) == list(FIXED_REPLICA_TRACES)


@pytest.mark.parametrize("trace", _ALL.values(), ids=_ALL)
def test_trace_matches_its_recorded_digest(trace: Trace) -> None:
    fixed = FIXED | FIXED_USE_CASES | FIXED_REPLICA_TRACES
    assert _digest(trace) == fixed[trace.name], "a changed trace makes all results so far void"


@pytest.mark.parametrize("trace", _OF_ONE_REPLICA.values(), ids=_OF_ONE_REPLICA)
def test_traces_of_more_replicas_differ_only_in_their_number(trace: Trace) -> None:
    family = [REPLICA_TRACES[f"{trace.name.removesuffix('-x1')}-x{count}"] for count in COUNTS]

    assert [replace(one, name="", replicas=1) for one in family] == [replace(trace, name="")] * len(COUNTS)
    assert [one.replicas for one in family] == list(COUNTS)


@pytest.mark.parametrize("trace", _ALL.values(), ids=_ALL)
def test_every_request_of_a_trace_fits_into_an_engine(trace: Trace) -> None:
    longest = trace.slot_context if trace.engine == "llama.cpp" else 17_600 * 16
    for session in trace.sessions(Random(1), 20.0):
        assert sum(token_count(turn.added) + turn.answer.tokens for turn in session.turns) < longest
        for aside in (aside for turn in session.turns for aside in (*turn.beside, *turn.after)):
            assert token_count(aside.prompt) + aside.answer.tokens < longest


@pytest.mark.parametrize("trace", (USE_CASES | REPLICA_TRACES).values(), ids=USE_CASES | REPLICA_TRACES)
def test_held_out_seeds_differ_from_the_usual_ones(trace: Trace) -> None:
    assert len(trace.held_out_seeds) == 2
    assert not set(trace.seeds) & set(trace.held_out_seeds)


def test_workloads_played_together_share_no_text() -> None:
    sessions = together(open_webui(0.5), batch(2, 3))(Random(1), 30.0)
    of_batch = _texts_of(session for session in sessions if "batch" in session.sender)
    of_chats = _texts_of(session for session in sessions if "batch" not in session.sender)

    assert len(of_batch) == 2 * 3 * 2 + 1
    assert of_chats
    assert not of_batch & of_chats


def _texts_of(sessions: Iterable[Session]) -> set[int]:
    texts = set[int]()
    for turn in (turn for session in sessions for turn in session.turns):
        asides = (*turn.beside, *turn.after)
        prompts = (turn.added, *(aside.prompt for aside in asides))
        answers = (turn.answer, *(aside.answer for aside in asides))
        texts.update(text.number for text in (*answers, *(text for prompt in prompts for text in prompt)))
    return texts


def _digest(trace: Trace) -> str:
    sum_of_all = hashlib.blake2b(digest_size=6)
    about = (trace.engine, trace.backends, trace.replicas, trace.seconds, trace.warm_up, trace.seeds)
    absence, added = trace.absence, ""
    if absence is not None:
        added = f"Absence(backend={absence.backend}, begin={absence.begin}, end={absence.end})"
        added += ", is_killed" * absence.is_killed
    line = f"{(*about, sorted(trace.slowness.items()))!r}"[:-1] + f", {added or None})"
    line += ", finishes" * trace.finishes
    if trace.takes_turns:
        line += f", takes turns, polls every {trace.poll_seconds} s"
    sum_of_all.update(line.encode())
    for seed in trace.seeds:
        for session in trace.sessions(Random(f"trace {seed}"), _SECONDS):
            sum_of_all.update(_line(session).encode())
    return sum_of_all.hexdigest()


def _line(session: Session) -> str:
    turns = [
        (
            f"{turn.pause:.6f}",
            tuple(map(tuple, (*turn.added, turn.answer))),
            turn.max_tokens,
            *(repr(asides) for asides in (turn.beside, turn.after) if asides),
        )
        for turn in session.turns
    ]
    return repr((f"{session.start:.6f}", turns, session.sender, session.header, session.is_streamed))
