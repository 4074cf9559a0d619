"""Learning policies learn from requests, however they end; over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from inference_engine_proxy_server.backends.base import ModelNames
from inference_engine_proxy_server.backends.reply_facts import ReplyFacts
from inference_engine_proxy_server.requests.prompt import read_prompt
from inference_engine_proxy_server.requests.token_sizes import USUAL_BYTES_A_TOKEN, TokenSizes
from inference_engine_proxy_server.routing.candidate import Candidate
from inference_engine_proxy_server.routing.choice import CandidateView, PromptView, Scores
from inference_engine_proxy_server.routing.expected_time.pending_work import PendingWork
from inference_engine_proxy_server.routing.expected_time.scoring import expected_time
from inference_engine_proxy_server.routing.model_policies import ModelPolicies
from inference_engine_proxy_server.routing.policies import POLICIES, PromptPolicy
from inference_engine_proxy_server.routing.requirements import Requirements
from inference_engine_proxy_server.tasks.deadlines import Deadlines
from support.fakes.engine import EngineConnection, FakeEngine, answering, http_reply
from support.fakes.front import until
from support.pools import READY, ForwardingFront, make_pool, publish

STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'data: {"n": 1}\n\n'
LAST = b'data: {"usage": {"prompt_tokens": 1000, "completion_tokens": 5}}\n\n'


def chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def question(text: str = "Begin.", *, stream: bool = False) -> bytes:
    """A body of about 1,000 tokens."""
    messages = [{"role": "system", "content": "x" * 4000}, {"role": "user", "content": text}]
    return json.dumps({"model": "m", "stream": stream, "messages": messages}).encode()


def under_way(backend: Candidate) -> tuple[int, int]:
    """Numbers of prompts that the backend is reading and of answers that it is writing."""
    return backend.work.reading, backend.work.writing


async def streams(connection: EngineConnection) -> None:
    await connection.request()
    connection.send(STREAM_HEAD)
    await connection.cue.wait()
    connection.cue.clear()
    connection.send(chunk(EVENT))
    await connection.cue.wait()
    connection.send(chunk(LAST), b"0\r\n\r\n")


async def breaks_off(connection: EngineConnection) -> None:
    await connection.request()
    connection.send(STREAM_HEAD, chunk(EVENT))
    await connection.cue.wait()
    connection.reset()


async def test_prompt_counts_as_unread_until_the_first_data_of_its_answer() -> None:
    async with FakeEngine(streams) as engine, ForwardingFront(engine, policy="expected_time") as proxy:
        [backend] = proxy.pool.placement.candidates
        client = await proxy.connect()
        body = question(stream=True)
        client.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await until(lambda: engine.requests)
        [connection] = engine.connections
        await client.head()  # the head alone shows nothing about the prompt
        assert under_way(backend) == (1, 0)
        assert backend.work.unread > 900
        connection.cue.set()
        await until(lambda: under_way(backend) == (0, 1))
        assert backend.work.unread == 0
        connection.cue.set()
        await until(lambda: not backend.load.leases)
        assert under_way(backend) == (0, 0)


async def test_failed_and_abandoned_requests_leave_no_pending_work() -> None:
    async with FakeEngine(breaks_off) as engine, ForwardingFront(engine, policy="expected_time") as proxy:
        [backend] = proxy.pool.placement.candidates
        body = question(stream=True)
        request = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        leaving, staying = await proxy.connect(), await proxy.connect()
        leaving.send(request)
        staying.send(request)
        await until(lambda: under_way(backend) == (0, 2))
        leaving.leave()
        await until(lambda: under_way(backend) == (0, 1))
        for connection in engine.connections:
            connection.cue.set()
        await until(lambda: under_way(backend) == (0, 0))
        assert backend.work.unread == 0


async def test_client_that_leaves_at_the_last_event_still_teaches() -> None:
    async with FakeEngine(streams) as engine, ForwardingFront(engine, policy="expected_time") as proxy:
        [backend] = proxy.pool.placement.candidates
        client = await proxy.connect()
        body = question(stream=True)
        client.send(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await until(lambda: engine.requests)
        [connection] = engine.connections
        connection.cue.set()
        await until(lambda: under_way(backend) == (0, 1))
        connection.send(chunk(LAST), chunk(b"data: [DONE]\n\n"))
        received = b""
        while b"[DONE]" not in received:
            received += await client.some()
        client.leave()
        await until(lambda: not backend.load.leases)
        assert backend.work.answers == 1


async def test_declined_request_counts_only_where_it_is_served() -> None:
    declines, serves = FakeEngine(answering(http_reply(b"", 503))), FakeEngine(answering(http_reply(b"{}")))
    async with declines, serves, ForwardingFront(declines, serves, policy="expected_time") as proxy:
        for number in range(6):
            assert (await proxy.post(question(str(number)))).startswith(b"HTTP/1.1 200")
        assert [under_way(backend) for backend in proxy.pool.placement.candidates] == [(0, 0), (0, 0)]
        assert [backend.work.unread for backend in proxy.pool.placement.candidates] == [0, 0]


async def test_request_that_needs_no_slot_teaches_nothing() -> None:
    async with (
        FakeEngine(answering(http_reply(b"{}"))) as engine,
        ForwardingFront(engine, policy="expected_time") as proxy,
    ):
        [backend] = proxy.pool.placement.candidates
        await proxy.post(question(), path="/tokenize")
        assert backend.work.sent_at == 0
        await proxy.post(question())
        assert backend.work.sent_at > 0


# --- by policy


def indexed(proxy: ForwardingFront) -> int:
    """Number of runs in the prefix index."""
    return len(proxy.pool.router.index)


@pytest.mark.parametrize("policy", ["power_of_two", "round_robin", "rendezvous"])
async def test_policy_that_does_not_learn_fills_no_index(policy: str) -> None:
    async with FakeEngine(answering(http_reply(b"{}"))) as engine, ForwardingFront(engine, policy=policy) as proxy:
        await proxy.post(question())
        [backend] = proxy.pool.placement.candidates
        assert (indexed(proxy), backend.work.answer_seconds) == (0, PendingWork().answer_seconds)
        assert backend.work.sent_at > 0


async def test_only_requests_under_a_learning_policy_fill_the_index() -> None:
    engine = FakeEngine(answering(http_reply(b"{}")))
    async with engine, ForwardingFront(engine, by_model={"m": "expected_time", "other": "rendezvous"}) as proxy:
        [backend] = proxy.pool.placement.candidates
        publish(proxy.pool, replace(READY, model_names=ModelNames.ANY))
        await proxy.post(question().replace(b'"m"', b'"a third"'))
        assert (indexed(proxy), backend.work.sent_at) == (0, 0)
        await proxy.post(question().replace(b'"m"', b'"other"'))
        assert indexed(proxy) == 0
        await proxy.post(question())
        assert indexed(proxy) == 1


async def test_prompts_of_a_model_under_least_requests_are_not_read() -> None:
    engine = FakeEngine(answering(http_reply(b"{}")))
    async with engine, ForwardingFront(engine, policy="expected_time", by_model={"m": "least_requests"}) as proxy:
        await proxy.post(question())
        assert (indexed(proxy), proxy.pool.placement.candidates[0].work.sent_at) == (0, 0)
        await proxy.post(question().replace(b'"model": "m", ', b""))  # the policy of all other models
        assert indexed(proxy) == 1


def test_prompts_are_not_read_if_no_policy_needs_them() -> None:
    pool = make_pool([], Deadlines(), by_model={"m": "least_requests"})
    assert not pool.placement.reads_prompts


def test_backend_that_joins_gets_a_number_of_its_own() -> None:
    pool = make_pool(["http://192.0.2.1:1", "http://192.0.2.1:2"], Deadlines(), policy="expected_time")
    [other] = make_pool(["http://192.0.2.1:3"], Deadlines()).backends
    known = [one.number for one in pool.placement.candidates]
    pool.replace([pool.backends[1], other])
    stays, joins = pool.placement.candidates
    assert stays.number == known[1]
    assert joins.number not in known


def test_learned_state_is_dropped_once_no_policy_learns() -> None:
    pool = make_pool(["http://192.0.2.1:1"], Deadlines(), policy="expected_time")
    publish(pool)
    prompt = read_prompt(b"/", "/", b"", question(), TokenSizes())
    lease = pool.lease(Requirements("m", prompt=prompt, policy=POLICIES["expected_time"]))
    assert lease is not None
    assert len(pool.router.index) == 1
    assert pool.placement.learned() is not None
    pool.placement.set_policies(ModelPolicies.named("rendezvous", {}))
    assert len(pool.router.index) == 0
    assert pool.placement.learned() is None
    lease.close()


def test_request_that_waits_keeps_its_policy_when_the_settings_change() -> None:
    pool = make_pool(["http://192.0.2.1:1", "http://192.0.2.1:2"], Deadlines(), policy="rendezvous")
    publish(pool)
    prompt = read_prompt(b"/", "/", b"", question(), TokenSizes())
    waiting = Requirements("m", prompt=prompt, policy=POLICIES["rendezvous"])
    pool.placement.set_policies(ModelPolicies.named("least_requests", {}))
    leases = [pool.lease(waiting) for _ in range(6)]
    assert len({lease.backend for lease in leases if lease is not None}) == 1
    assert [lease.tracker for lease in leases if lease is not None] == [None] * 6


@pytest.mark.parametrize("is_read", [True, False])
def test_reply_that_is_not_parsed_ends_and_teaches_nothing(is_read: bool) -> None:
    pool = make_pool(["http://192.0.2.1:1"], Deadlines(), policy="expected_time")
    [backend] = pool.placement.candidates
    publish(pool)
    prompt = read_prompt(b"/", "/", b"", question(), TokenSizes())
    for _ in range(3):
        lease = pool.lease(Requirements("m", prompt=prompt, policy=POLICIES["expected_time"]))
        assert lease is not None
        assert lease.tracker is not None
        lease.tracker.begin()
        lease.tracker.complete(ReplyFacts(2000, 1000, 5, 1000, 500.0, 80.0) if is_read else None)
        lease.close()
    assert under_way(backend) == (0, 0)
    assert backend.work.reuse.sent == (6000 if is_read else 0)
    assert backend.work.speeds.is_known is is_read


# --- sizes


async def test_bytes_of_a_token_follow_the_replies() -> None:
    usage = b'{"usage": {"prompt_tokens": 2000, "completion_tokens": 5}}'
    async with (
        FakeEngine(answering(http_reply(usage))) as engine,
        ForwardingFront(engine, policy="expected_time") as proxy,
    ):
        router = proxy.pool.router
        picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "iVBORw0K" * 200}}
        seen = {"model": "m", "messages": [{"role": "user", "content": ["x" * 2000, picture]}]}
        await proxy.post(json.dumps(seen).encode())
        await asyncio.sleep(0.01)  # of replies that end together only some are parsed
        await proxy.post(json.dumps({"model": "m", "input": "x" * 2000}).encode(), path="/v1/embeddings")
        assert router.token_sizes.of("m") == USUAL_BYTES_A_TOKEN
        for number in range(2):
            await asyncio.sleep(0.01)
            await proxy.post(question(str(number)))
        assert router.token_sizes.of("m") == pytest.approx(2.05, rel=0.1)


def test_prompt_tokens_follow_the_learned_size_of_a_token() -> None:
    sizes = TokenSizes()
    for _ in range(20):
        sizes.learn("m", 2000, 1000)
    prompt = read_prompt(b"/", "/", b"", question(), sizes)
    assert prompt.tokens == pytest.approx(2000, rel=0.05)


async def test_cache_estimate_starts_from_the_reported_memory() -> None:
    async with (
        FakeEngine(answering(http_reply(b"{}"))) as reporting,
        FakeEngine(answering(http_reply(b"{}"))) as silent,
        ForwardingFront(reporting, silent, policy="expected_time") as proxy,
    ):
        router = proxy.pool.router
        before = router.index.keeps(1)
        tells, does_not = proxy.pool.placement.candidates
        for state in (replace(READY, memory_tokens=1000), READY):
            proxy.pool.publish(tells.backend, state, own_at_poll=0, asked_at=proxy.pool.clock())
            proxy.pool.publish(does_not.backend, READY, own_at_poll=0, asked_at=proxy.pool.clock())
            assert router.index.keeps(tells.number) == 4000
            assert router.index.keeps(does_not.number) == before
        for _ in range(2):
            router.token_sizes.learn("m", 2000, 1000)
        publish(proxy.pool)
        assert router.index.keeps(tells.number) == 2000


# --- beyond the slots


def test_two_requests_may_exceed_the_slots_of_a_backend_that_holds_the_prompt() -> None:
    pool = make_pool(["http://192.0.2.1:1", "http://192.0.2.1:2"], Deadlines(), policy="expected_time")
    publish(pool, replace(READY, capacity=1))
    policy = pool.placement.policy("m")
    long = json.dumps({"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "x" * 400_000}]})
    wanted = Requirements("m", prompt=read_prompt(b"/", "/", b"", long.encode(), TokenSizes()), policy=policy)
    first = pool.lease(wanted)
    assert first is not None
    assert first.tracker is not None
    first.tracker.begin()

    places = [pool.lease(wanted) for _ in range(3)]

    others = [backend for backend in pool.backends if backend is not first.backend]
    assert [place.backend for place in places if place is not None] == [first.backend, first.backend, *others]


# --- large fleets


def test_only_warm_and_some_random_candidates_of_many_are_scored() -> None:
    pool = make_pool([f"http://192.0.2.1:{port}" for port in range(1, 201)], Deadlines(), policy="expected_time")
    policy = pool.placement.policy("m")
    assert isinstance(policy, PromptPolicy)
    looked_at: list[int] = []

    def spying(candidates: Sequence[CandidateView], request: PromptView, now: float) -> Scores:
        looked_at.append(len(candidates))
        return expected_time(candidates, request, now)

    publish(pool)
    wanted = Requirements(
        "m", prompt=read_prompt(b"/", "/", b"", question(), TokenSizes()), policy=replace(policy, scoring=spying)
    )
    first = pool.lease(wanted)
    assert first is not None
    first.close()
    for _ in range(20):
        again = pool.lease(wanted)
        assert again is not None
        assert again.backend is first.backend
        again.close()
    assert max(looked_at) <= 25
