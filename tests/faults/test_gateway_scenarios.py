"""The scenarios of the public benchmark failoverbench, small: one failing engine, or several, and what the client sees.

docs/fault-tests.md has one row for each.
"""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from faults.conftest import CHAT
from support.engine import EVENT, STREAM_HEAD, Answer, Engine, answers_with, chunk, fails_with, hangs
from support.fakes.engine import EngineConnection, http_reply
from support.fleet import Fleet
from support.http_client import Reply, chat

WELL = answers_with(http_reply())
DONE = b"data: [DONE]\n\n"
END = b"0\r\n\r\n"


async def resets(connection: EngineConnection) -> None:
    connection.reset()
    raise ConnectionError("it is gone")


async def sends_only_a_head(connection: EngineConnection) -> None:
    connection.send(STREAM_HEAD)
    await hangs(connection)


async def ask_failing_first(fleet: Fleet, answer: Answer, **settings: object) -> tuple[Reply, Engine, Engine]:
    """The reply to a stream that an engine with ``answer`` gets first; that engine, and the other one."""
    failing, other = await fleet.engine(answer), await fleet.engine(processing=5)
    proxy = await fleet.proxy(failing, other, **settings)
    reply = await proxy.post(CHAT, chat(stream=True))
    assert len(failing.served) == 1
    return reply, failing, other


@pytest.mark.parametrize(
    ("answer", "settings"),
    [
        pytest.param(fails_with(429, b"retry-after: 2\r\n"), {}, id="S01 429 with Retry-After"),
        pytest.param(fails_with(500), {}, id="S03 single 500"),
        pytest.param(fails_with(503), {}, id="S04 503"),
        pytest.param(resets, {}, id="S05 reset"),
        pytest.param(hangs, {"backend_first_byte_timeout_seconds": 0.3}, id="S06 no response"),
        pytest.param(hangs, {"first_token_timeout_seconds": 0.3}, id="S07 slow first token"),
        pytest.param(sends_only_a_head, {"first_token_timeout_seconds": 0.3}, id="S07 slow first token after the head"),
    ],
)
async def test_failure_before_the_first_event_is_hidden(
    fleet: Fleet, answer: Answer, settings: dict[str, object]
) -> None:
    began_at = time.monotonic()
    reply, _, other = await ask_failing_first(fleet, answer, **settings)
    assert (reply.status, reply.headers["x-backend"]) == (200, other.url)
    assert time.monotonic() - began_at < 5


async def test_engine_that_asks_for_a_pause_is_left_alone(fleet: Fleet) -> None:
    _, failing, other = await ask_failing_first(fleet, fails_with(429, b"retry-after: 20\r\n"))
    assert fleet.last_proxy is not None
    replies = [await fleet.last_proxy.post() for _ in range(10)]
    assert {(reply.status, reply.headers["x-backend"]) for reply in replies} == {(200, other.url)}
    assert len(failing.served) == 1


async def test_persistent_429_reaches_the_client_after_two_attempts(fleet: Fleet) -> None:
    engines = [await fleet.engine(fails_with(429, b"retry-after: 7\r\n")) for _ in range(3)]
    proxy = await fleet.proxy(*engines)
    reply = await proxy.post()
    assert (reply.status, reply.headers["retry-after"], reply.json) == (429, "7", {"error": "its own"})
    assert sum(len(engine.served) for engine in engines) == 2


async def test_persistent_503_costs_no_client_anything(fleet: Fleet) -> None:
    failing, other = await fleet.engine(fails_with(503)), await fleet.engine()
    proxy = await fleet.proxy(failing, other, refresh_seconds=0.1)
    assert {(await proxy.post()).status for _ in range(40)} == {200}
    assert len(failing.served) <= 6


@pytest.mark.parametrize("status", [500, 503])
async def test_status_on_which_two_engines_agree_reaches_the_client(fleet: Fleet, status: int) -> None:
    engines = [await fleet.engine(fails_with(status)) for _ in range(3)]
    proxy = await fleet.proxy(*engines)
    reply = await proxy.post()
    assert (reply.status, reply.json) == (status, {"error": "its own"})
    assert sum(len(engine.served) for engine in engines) == 2


def said(content: str, finish: str | None = None) -> bytes:
    """An event of a chat."""
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish}
    members = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return chunk(b"data: " + json.dumps(members).encode() + b"\n\n")


def says_and(end: Answer, *words: str) -> Answer:
    """Begins a chat with ``words``, and then ends like ``end``."""

    async def answer(connection: EngineConnection) -> None:
        connection.send(STREAM_HEAD, *map(said, words))
        await asyncio.sleep(0.1)  # a reset discards what the peer has not read yet
        await end(connection)

    return answer


REST = answers_with(STREAM_HEAD, said(" three"), said("", "stop"), chunk(DONE), END)


@pytest.mark.parametrize(
    ("end", "settings"),
    [
        pytest.param(resets, {}, id="S08 stream cut"),
        pytest.param(hangs, {"backend_stream_idle_timeout_seconds": 0.3}, id="S09 stalled stream"),
    ],
)
async def test_failure_after_two_events_is_hidden(fleet: Fleet, end: Answer, settings: dict[str, object]) -> None:
    failing, other = await fleet.engine(says_and(end, "one", " two")), await fleet.engine(REST, processing=5)
    proxy = await fleet.proxy(failing, other, **settings)
    reply = await proxy.post(CHAT, chat(stream=True))
    assert (reply.status, reply.complete) == (200, True)
    events = [json.loads(line[6:]) for line in reply.body.split(b"\n\n") if line.startswith(b"data: {")]
    choices = [choice for event in events for choice in event["choices"]]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == "one two three"
    assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["stop"]
    assert reply.body.endswith(DONE)
    assert (len(failing.served), len(other.served)) == (1, 1)


@pytest.mark.parametrize(
    ("end", "settings", "code"),
    [
        pytest.param(resets, {}, b"backend_disconnected", id="S08 stream cut"),
        pytest.param(hangs, {"backend_stream_idle_timeout_seconds": 0.3}, b"backend_timeout", id="S09 stalled stream"),
    ],
)
async def test_failure_after_the_only_event_of_a_chat_is_reported(
    fleet: Fleet, end: Answer, settings: dict[str, object], code: bytes
) -> None:
    """Engines may repeat this event, or go on with the same word. See the rule ``one_event``."""
    failing, other = await fleet.engine(says_and(end, "one")), await fleet.engine(REST, processing=5)
    proxy = await fleet.proxy(failing, other, **settings)
    reply = await proxy.post(CHAT, chat(stream=True))
    assert (reply.status, reply.complete) == (200, False)
    assert code in reply.body
    assert DONE not in reply.body
    assert not other.served


async def test_malformed_event_is_forwarded_as_it_is(fleet: Fleet) -> None:
    broken = b'data: {"choices": [{"delta": {"cont\n\n'
    stream = STREAM_HEAD + chunk(EVENT) + chunk(broken) + chunk(DONE) + END
    reply, _, other = await ask_failing_first(fleet, answers_with(stream))
    assert (reply.status, reply.complete, reply.body) == (200, True, EVENT + broken + DONE)
    assert not other.served


async def test_malformed_chunk_ends_the_stream_as_broken(fleet: Fleet) -> None:
    async def sends_nonsense(connection: EngineConnection) -> None:
        connection.send(STREAM_HEAD, chunk(EVENT))
        await asyncio.sleep(0.1)
        connection.send(b"zz\r\nnonsense\r\n")

    reply, _, _ = await ask_failing_first(fleet, sends_nonsense)
    assert (reply.status, reply.complete) == (200, False)
    assert b"invalid_backend_reply" in reply.body
    assert DONE not in reply.body


async def test_missing_done_is_not_added(fleet: Fleet) -> None:
    reply, _, _ = await ask_failing_first(fleet, answers_with(STREAM_HEAD, chunk(EVENT), END))
    assert (reply.status, reply.complete, reply.body) == (200, True, EVENT)


CONTENT_FILTER = b'data: {"choices": [{"delta": {}, "finish_reason": "content_filter"}]}\n\n'


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        pytest.param(fails_with(400), 400, id="S12 context length"),
        pytest.param(answers_with(STREAM_HEAD, chunk(CONTENT_FILTER), END), 200, id="S13 content filter"),
    ],
)
async def test_what_is_about_the_request_is_not_tried_elsewhere(fleet: Fleet, answer: Answer, status: int) -> None:
    reply, failing, other = await ask_failing_first(fleet, answer)
    assert (reply.status, reply.headers["x-backend"]) == (status, failing.url)
    assert not other.served
    assert fleet.last_proxy is not None
    assert await fleet.last_proxy.state(failing) == "up"


async def test_flapping_engine_is_used_within_seconds_of_its_recovery(fleet: Fleet) -> None:
    flapping, other = await fleet.engine(fails_with(503)), await fleet.engine()
    proxy = await fleet.proxy(flapping, other, refresh_seconds=0.1)
    async with asyncio.timeout(30):
        while len(flapping.served) < 7 or await proxy.state(flapping) != "suspect":  # two trials have failed
            assert (await proxy.post()).status == 200
            await asyncio.sleep(0.02)
    flapping.answer = WELL
    recovered_at = time.monotonic()
    while (await proxy.post()).headers["x-backend"] != flapping.url:
        assert time.monotonic() - recovered_at < 8
        await asyncio.sleep(0.05)
    await proxy.becomes(flapping, "up", 1)


async def test_request_that_is_repeated_is_counted_once(fleet: Fleet) -> None:
    _, failing, other = await ask_failing_first(fleet, fails_with(503))
    proxy = fleet.last_proxy
    assert proxy is not None
    assert await proxy.metric("requests_total", backend=other.url, code="200") == 1
    assert await proxy.metric("requests_total", backend=failing.url) == 0
    assert await proxy.retries("backend_declined") == 1
