"""Results of bytes that reach a connection in memory, and rules for them."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import h11

from inference_engine_proxy_server.wire.exchange import Exchange
from support.fakes.back import Sink
from support.fakes.front import LIMITS
from support.fakes.memory import MemoryBackend, MemoryClient, turns
from support.fakes.messages import REPLIES, TIGHT

__all__ = [
    "AT_ONCE",
    "OURS",
    "Delays",
    "Relayed",
    "backend_request",
    "backend_requests",
    "check_framing",
    "check_with_another_parser",
    "pieces",
    "relayed",
    "seen",
]


@dataclass(frozen=True)
class Delays:
    """The timing of network and engine.

    Attributes:
        turns: loop iterations after each read, in order.
        answer_turns: loop iterations until a request is answered.
        high_water_bytes: unsent bytes at which the proxy pauses; ``None``: the client reads all at once.
        take_bytes: bytes that the client reads after each read of the proxy.
    """

    turns: list[int]
    answer_turns: int = 0
    high_water_bytes: int | None = None
    take_bytes: int = 0


AT_ONCE = Delays([0])


def pieces(stream: bytes, cuts: Sequence[int]) -> list[bytes]:
    edges = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    return [stream[start:end] for start, end in itertools.pairwise(edges)]


Seen = tuple[list[tuple[object, ...]], bytes, bool]
"""The exchanges, the bytes sent to the client, and whether its connection was ended."""


async def seen(reads: Sequence[bytes], delays: Delays) -> Seen:
    """The result of the ``reads`` of a client."""
    exchanges: list[tuple[object, ...]] = []

    async def echo(exchange: Exchange) -> None:
        head = exchange.head
        exchanges.append((head.method, head.target, head.host, head.minor_version, exchange.body, head.passed_on))
        await turns(delays.answer_turns)
        exchange.respond(200, b"", b"%b %b %b" % (head.method.encode(), head.target, exchange.body))

    client = MemoryClient(echo, TIGHT, delays.high_water_bytes)
    client.transport.takes_all = delays.high_water_bytes is None
    for block, count in zip(reads, itertools.cycle(delays.turns), strict=False):
        await client.transport.receive(block)
        await turns(count)
        client.transport.take(delays.take_bytes)
    await client.settle()
    ended = client.transport.is_closing() or client.transport.half_closed
    return exchanges, comparable(bytes(client.transport.sent)), ended


def comparable(sent: bytes) -> bytes:
    """``sent`` without parts that may differ: dates, error texts, and 100 Continue, sent only before a body."""
    sent = re.sub(rb"HTTP/1\.1 100 Continue\r\n\r\n", b"", sent)
    sent = re.sub(rb"content-length: \d+\r\n|\"message\": \"[^\"]*\"", b"", sent)
    return re.sub(rb"date: [^\r]*\r\n", b"", sent)


@dataclass(frozen=True)
class Relayed:
    """A reply as the client sees it, and the end of its connection."""

    begun: tuple[object, ...]
    payload: bytes
    ended: int
    fault: type[Exception] | None
    reusable: bool


async def relayed(reads: Sequence[bytes], *, is_head: bool, ends: bool, takes_chunks: bool) -> Relayed:
    """The result of the ``reads`` of a backend. A reusable connection must then behave like a new one."""
    backend, sink = MemoryBackend(), Sink(takes_chunks=takes_chunks)
    error = await backend.reply(reads, sink, is_head=is_head, ends=ends)
    reusable = backend.connection.is_reusable and not backend.connection.is_stale()
    if reusable:
        again = Sink()
        assert await backend.reply([REPLIES[0]], again, ends=False) is None
        assert (again.status, again.payload, again.ended) == (200, b"hello", 1)
    begun = sink.status, sink.reason, sink.fields, sink.content_length
    return Relayed(begun, sink.payload, sink.ended, None if error is None else type(error), reusable)


OURS = {b"host", b"content-length", b"x-request-id"}
NEVER_PASSED_ON = {b"transfer-encoding", b"te", b"trailer", b"upgrade", b"keep-alive", b"proxy-connection"}
NEVER_PASSED_ON |= {b"expect", b"http2-settings"}


def backend_request(exchange: Exchange, *, close: bool) -> bytes:
    """The request that a backend gets for ``exchange``."""
    head = exchange.head
    authority, prefix, credentials = b"engine:1", b"/base", head.credentials
    section = head.for_backend(
        authority, prefix, exchange.request_id, len(exchange.body), credentials=credentials, close=close
    )
    return section + exchange.body


async def backend_requests(reads: Sequence[bytes], *, close: bool) -> list[tuple[Exchange, bytes]]:
    """The exchanges in the ``reads`` of a client, each with the forwarded request."""
    exchanges: list[Exchange] = []

    async def answer(exchange: Exchange) -> None:
        exchanges.append(exchange)
        exchange.respond(200, b"", b"")

    client = MemoryClient(answer, LIMITS)
    for block in reads:
        await client.transport.receive(block)
    await client.settle()
    return [(exchange, backend_request(exchange, close=close)) for exchange in exchanges]


def check_framing(exchange: Exchange, sent: bytes, *, close: bool) -> None:
    """Check ``sent``: one Host, at most one length, equal to that of the body, and no hop-by-hop field."""
    section, _, body = sent.partition(b"\r\n\r\n")
    first, *lines = section.split(b"\r\n")
    assert not re.search(rb"[\r\n\0]", b"".join(lines))
    assert first == b"%b %b%b HTTP/1.1" % (
        exchange.head.method.encode(),
        b"" if exchange.head.target == b"*" else b"/base",
        exchange.head.target,
    )
    names = [line.partition(b":")[0].lower() for line in lines]
    assert all(names.count(name) <= 1 for name in OURS)
    assert b"host: engine:1" in lines
    assert (b"content-length: %d" % len(body) in lines) or (not body and b"content-length" not in names)
    assert not (NEVER_PASSED_ON - {b"upgrade"} if exchange.head.upgrade else NEVER_PASSED_ON) & set(names)
    expected = [b"connection: close"] * close
    if exchange.head.upgrade:
        expected = [b"connection: Upgrade", b"upgrade: websocket", *expected]
    assert [line for line in lines if line.lower().startswith((b"connection:", b"upgrade:"))] == expected


def check_with_another_parser(exchange: Exchange, sent: bytes) -> None:
    """Check that h11 finds exactly this request in ``sent``."""
    reader = h11.Connection(h11.SERVER)
    reader.receive_data(sent)
    request = reader.next_event()
    assert isinstance(request, h11.Request)
    body = b""
    while isinstance(event := reader.next_event(), h11.Data):
        body += event.data
    assert isinstance(event, h11.EndOfMessage)
    assert (request.method.decode(), body) == (exchange.head.method, exchange.body)
    assert reader.trailing_data == (b"", False)
