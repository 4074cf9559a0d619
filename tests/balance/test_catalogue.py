"""The traces are fixed, so that results of different policies stay comparable."""

from __future__ import annotations

import hashlib
from random import Random

import pytest

from simulation.catalogue import TRACES
from simulation.requests import token_count
from simulation.trace import Session, Trace

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


def test_every_trace_has_a_recorded_digest() -> None:
    assert list(TRACES) == list(FIXED)


@pytest.mark.parametrize("trace", TRACES.values(), ids=TRACES)
def test_trace_matches_its_recorded_digest(trace: Trace) -> None:
    assert _digest(trace) == FIXED[trace.name], "a changed trace makes all results so far void"


@pytest.mark.parametrize("trace", TRACES.values(), ids=TRACES)
def test_every_request_of_a_trace_fits_into_an_engine(trace: Trace) -> None:
    longest = 32_768 if trace.engine == "llama.cpp" else 17_600 * 16
    for session in trace.sessions(Random(1), 20.0):
        assert sum(token_count(turn.added) + turn.answer.tokens for turn in session.turns) < longest


def _digest(trace: Trace) -> str:
    sum_of_all = hashlib.blake2b(digest_size=6)
    about = (trace.engine, trace.backends, trace.replicas, trace.seconds, trace.warm_up, trace.seeds)
    sum_of_all.update(repr((*about, sorted(trace.slowness.items()), trace.absence)).encode())
    for seed in trace.seeds:
        for session in trace.sessions(Random(f"trace {seed}"), _SECONDS):
            sum_of_all.update(_line(session).encode())
    return sum_of_all.hexdigest()


def _line(session: Session) -> str:
    turns = [
        (f"{turn.pause:.6f}", tuple(map(tuple, (*turn.added, turn.answer))), turn.max_tokens) for turn in session.turns
    ]
    return repr((f"{session.start:.6f}", turns, session.sender, session.header, session.is_streamed))
