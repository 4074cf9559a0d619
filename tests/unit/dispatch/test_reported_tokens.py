"""The tokens in a request's record, from recorded replies that arrive over a socket in any pieces."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

import recorded
from inference_engine_proxy_server.backends.reply_facts import ReplyFacts
from inference_engine_proxy_server.dispatch.learning_observer import LearningObserver
from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.requests.destinations import Destination
from inference_engine_proxy_server.routing.requirements import Requirements
from inference_engine_proxy_server.telemetry.request_record import RequestRecord
from inference_engine_proxy_server.usage.token_counter import TokenCounter
from inference_engine_proxy_server.wire.request_head import parse_request_head
from support.fakes.back import GET, connections_to
from support.fakes.engine import EngineConnection, FakeEngine
from unit.wire.test_exchange import EVENTS, LIMITS, Connection

FOLDER = Path(recorded.__file__).parent
TOKENS = {
    "llama-server/chat-nonstream": (30, 0, 24),
    "llama-server/chat-nonstream-2nd-cached": (30, 25, 24),
    "llama-server/chat-stream-raw": (30, 25, 24),
    "llama-server/chat-stream-usage-raw": (30, 25, 24),
    "llama-server/completions-stream-raw": (6, 1, 4),
    "llama-server/native-completion": (6, 1, 4),
    "llama-server/v1-messages-stream-raw": (26, 21, 6),
    "llama-server/v1-responses-stream-raw": (26, 21, 4),
    "llama-server/embeddings": (12, None, 0),
    "vllm/chat-nonstream": (38, None, 12),
    "vllm/chat-stream-usage-raw": (38, None, 12),
    "vllm/chat-stream-raw": (None, None, None),
    "vllm/v1-messages-stream-raw": (24, None, 4),
    "vllm/v1-responses-stream-raw": (24, 0, 4),
}


def pieces_of(name: str, way: str) -> Sequence[bytes]:
    """A recorded reply, cut so that each chunk of a stream is a piece, or each half of one; or whole."""
    reply = (FOLDER / f"{name}.http").read_bytes()
    head, _, body = reply.partition(b"\r\n\r\n")
    if way == "whole" or b"chunked" not in head.lower():
        return [reply]
    pieces = [head + b"\r\n\r\n"]
    while body:
        line, _, _ = body.partition(b"\r\n")
        size = len(line) + 2 + int(line, 16) + 2
        pieces += [body[:size]] if way == "chunks" else [body[: size // 2], body[size // 2 : size]]
        body = body[size:]
    return pieces


def new_request(version: bytes = b"1.1") -> tuple[ProxiedRequest, Connection]:
    connection = Connection()
    head = parse_request_head(b"POST /v1/chat/completions HTTP/%b\r\nHost: a\r\n" % version, LIMITS)
    head.destination = Destination.WORK
    request = ProxiedRequest(connection, head, b"", "id-1", "1.2.3.4:5")
    request.backend, request.requirements = "http://a", Requirements()
    return request, connection


async def relay(request: ProxiedRequest, pieces: Sequence[bytes]) -> RequestRecord:
    """Let an engine send ``pieces``, one at a time, as the reply to ``request``."""

    async def script(connection: EngineConnection) -> None:
        await connection.request()
        for piece in pieces:
            connection.send(piece)
            for _ in range(4):  # until the other side has read it
                await asyncio.sleep(0)

    async with FakeEngine(script) as engine, connections_to(engine.url) as connections:
        connection = await connections.connect()
        async with asyncio.timeout(20):
            await connection.request([GET], request, is_head=False)
        connections.release(connection)
    return request.record(9.0)


def tokens_in(record: RequestRecord) -> tuple[int | None, int | None, int | None]:
    return record.prompt_tokens, record.cached_tokens, record.output_tokens


@pytest.mark.parametrize("way", ["whole", "chunks", "halves"])
@pytest.mark.parametrize(("name", "tokens"), TOKENS.items(), ids=TOKENS)
async def test_tokens_are_those_that_the_reply_reports(
    name: str, tokens: tuple[int | None, int | None, int | None], way: str
) -> None:
    request, connection = new_request()
    pieces = pieces_of(name, way)
    record = await relay(request, pieces)
    assert tokens_in(record) == tokens
    assert record.is_stream == ("stream-raw" in name or "usage-raw" in name)
    assert len(connection.blocks) >= len(pieces) * 0.7  # only those ahead of the first event are joined


@pytest.mark.parametrize("name", ["llama-server/chat-stream-usage-raw", "vllm/v1-messages-stream-raw"])
async def test_tokens_are_read_for_clients_of_http_1_0(name: str) -> None:
    request, _ = new_request(b"1.0")
    assert tokens_in(await relay(request, pieces_of(name, "chunks"))) == TOKENS[name]


@pytest.mark.parametrize("name", ["llama-server/v1-messages-stream-raw", "vllm/chat-stream-usage-raw"])
async def test_tokens_are_read_after_comments(name: str) -> None:
    request, _ = new_request()
    request.send_comment(b": queued position=1\n\n")
    request.end_comments()
    events = [piece for piece in pieces_of(name, "chunks") if not piece.startswith((b"HTTP", b"0\r\n"))]
    for event in events:
        request.write(event.partition(b"\r\n")[2].removesuffix(b"\r\n"))
    request.end()
    assert tokens_in(request.record(9.0)) == TOKENS[name]


async def test_tokens_are_those_of_the_excerpt_if_an_observer_has_one() -> None:
    request, _ = new_request()
    counter = TokenCounter.of(request)
    record = await relay(request, pieces_of("llama-server/chat-stream-usage-raw", "chunks"))
    assert tokens_in(record) == (30, 25, 24)
    assert (counter.used.input_tokens, counter.used.output_tokens) == (30, 24)


class FactsTracker:
    """Keeps what routing would learn from."""

    facts: ReplyFacts | None = None

    def begin(self) -> None:
        pass

    def wants_facts(self) -> bool:
        return True

    def complete(self, facts: ReplyFacts | None) -> None:
        self.facts = facts

    def close(self) -> None:
        pass


@pytest.mark.parametrize("way", ["whole", "chunks", "halves"])
@pytest.mark.parametrize(("name", "tokens"), TOKENS.items(), ids=TOKENS)
async def test_routing_learns_from_the_ends_of_a_reply_what_the_whole_reply_reports(
    name: str, tokens: tuple[int | None, int | None, int | None], way: str
) -> None:
    trackers = FactsTracker(), FactsTracker()
    for tracker, has_excerpt in zip(trackers, (False, True), strict=True):
        request, _ = new_request()
        request.observers.add(LearningObserver(request, tracker))
        if has_excerpt:
            request.observers.excerpt()
        assert tokens_in(await relay(request, pieces_of(name, way))) == tokens
        assert (request.excerpt is not None) == has_excerpt
    of_ends, of_whole = (tracker.facts for tracker in trackers)
    assert of_ends is not None
    assert of_ends[:3] == tokens
    assert of_ends == of_whole


def message_stream(*events: bytes) -> ProxiedRequest:
    request, _ = new_request()
    request.begin(200, b"", EVENTS, None)
    for event in events:
        request.write(event)
    return request


START = b'event: message_start\ndata: {"message":{"usage":{"input_tokens":9,"output_tokens":1}}}\n\n'
STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
DELTA = b'event: message_delta\ndata: {"usage":{"output_tokens":5}}\n\n'


def test_an_answer_that_was_cut_has_no_count() -> None:
    request = message_stream(START)
    request.client_left()
    record = request.record(9.0)
    assert tokens_in(record) == (9, None, None)
    assert (record.termination, record.is_stream) == ("client_left", True)


def test_an_answer_is_whole_when_its_last_event_has_come() -> None:
    request = message_stream(START, DELTA, STOP)
    request.client_left()
    assert tokens_in(request.record(9.0)) == (9, None, 5)


@pytest.mark.parametrize(
    ("status", "backend", "needs_slot"), [(400, "http://a", True), (200, None, True), (200, "http://a", False)]
)
def test_only_replies_of_engines_that_have_worked_are_read(status: int, backend: str | None, needs_slot: bool) -> None:
    request, _ = new_request()
    request.backend, request.requirements = backend, Requirements(needs_slot=needs_slot)
    request.respond(status, b"", b'{"usage":{"prompt_tokens":1,"completion_tokens":1}}')
    assert tokens_in(request.record(9.0)) == (None, None, None)
