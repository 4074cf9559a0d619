"""``expected_time`` in a pool: bursts are spread evenly, and the slots of backends are followed."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest

from inference_engine_proxy_server.backends.reply_facts import ReplyFacts
from inference_engine_proxy_server.dispatch.leases import Lease
from inference_engine_proxy_server.requests.prompt import read_prompt
from inference_engine_proxy_server.requests.token_sizes import TokenSizes
from inference_engine_proxy_server.routing.requirements import Requirements
from inference_engine_proxy_server.tasks.deadlines import Deadlines
from support.pools import READY, Pool, make_pool, publish


def question(text: str = "Begin.") -> bytes:
    """A body of about 1,000 tokens."""
    messages = [{"role": "system", "content": "x" * 4000}, {"role": "user", "content": text}]
    return json.dumps({"model": "m", "stream": True, "messages": messages}).encode()


def lease_of(pool: Pool, body: bytes) -> Lease:
    prompt = read_prompt(b"/", "/", b"", body, TokenSizes())
    lease = pool.lease(Requirements("m", prompt=prompt, policy=pool.placement.policy("m")))
    assert lease is not None
    return lease


@pytest.mark.parametrize("kind", ["distinct", "same", "long start"])
@pytest.mark.parametrize("slots", [None, 32])
def test_a_burst_is_spread_evenly(kind: str, slots: int | None) -> None:
    pool = make_pool([f"http://192.0.2.1:{port}" for port in range(1, 5)], Deadlines(), policy="expected_time")
    publish(pool, replace(READY, capacity=slots))
    bodies = {
        "distinct": [question(f"{number} " * 100) for number in range(64)],
        "same": [question()] * 64,
        "long start": [question(f"question {number}") for number in range(64)],
    }

    shares = Counter(lease_of(pool, body).backend for body in bodies[kind])

    assert sorted(shares.values()) == [16, 16, 16, 16]


def test_a_burst_evens_out_foreign_load() -> None:
    pool = make_pool([f"http://192.0.2.1:{port}" for port in range(1, 5)], Deadlines(), policy="expected_time")
    for backend, foreign in zip(pool.backends, (0.0, 3.0, 3.0, 3.0), strict=True):
        state = replace(READY, requests_processing=foreign)
        pool.publish(backend, state, own_at_poll=0, asked_at=pool.clock())

    for number in range(59):
        lease_of(pool, question(f"{number} " * 100))

    assert {backend.load.total for backend in pool.backends} <= {16.0, 17.0, 18.0}


@pytest.mark.parametrize("shares", [True, False])
def test_replies_show_whether_busy_slots_share_their_prompts(shares: bool) -> None:
    pool = make_pool(["http://192.0.2.1:1"], Deadlines(), policy="expected_time")
    publish(pool, replace(READY, capacity=4))
    [backend] = pool.placement.candidates
    leases = [lease_of(pool, question(text * 40)) for text in ("one", "two")]
    assert leases[1].tracker is not None
    assert backend.work.unread > 2000, "the first is still running, so the second finds no slot with its beginning"

    leases[1].tracker.complete(ReplyFacts(1000, 980 if shares else 0, 5, None, None))

    assert (backend.work.contents.shares > 0) is shares


def test_the_slots_of_a_lost_backend_are_forgotten() -> None:
    pool = make_pool(["http://192.0.2.1:1"], Deadlines(), policy="expected_time")
    publish(pool, replace(READY, capacity=4))
    lease_of(pool, question())
    [backend] = pool.placement.candidates
    assert len(backend.work.contents) == 1

    pool.report_refusal(backend.backend)

    assert len(backend.work.contents) == 0
