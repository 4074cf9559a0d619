"""Rules that hold for any bytes. Each target takes input of a fuzzer and raises if the input breaks a rule.

An input has one byte that chooses the target, one that says how the network splits and delays the rest, and the rest:
bytes of a client, of a backend, or of both with ``BETWEEN`` in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import h11

from inference_engine_proxy_server.errors import BackendError, ClientError, InvalidReply
from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.framing import ChunkedBody, InvalidChunk
from inference_engine_proxy_server.wire.head_memory import HeadMemory
from inference_engine_proxy_server.wire.outcome import Outcome
from inference_engine_proxy_server.wire.reply_head import ReplyHead, parse_reply_head
from inference_engine_proxy_server.wire.request_head import RequestHead, parse_request_head
from support.fakes.back import Sink
from support.fakes.front import LIMITS
from support.fakes.memory import HurryingLoop, MemoryBackend, MemoryClient
from support.fakes.messages import BAD_REPLIES, GET, MALFORMED, ODD, REPLIES, TIGHT, VALID
from support.fakes.rules import (
    AT_ONCE,
    Delays,
    backend_request,
    check_framing,
    check_with_another_parser,
    pieces,
    relayed,
    seen,
)

__all__ = ["BETWEEN", "check", "regressions", "seeds"]

BETWEEN = b"\n====\n"
_MOST_BYTES = 4096  # of an input; longer ones cost time and find nothing more
_LATER = 100.0  # seconds; longer than every deadline of a connection in memory
_OF_OUR_OWN = {501, 505}  # statuses for unreadable requests besides 4xx


def check(loop: HurryingLoop, data: bytes) -> None:
    """Raise if ``data`` breaks a rule."""
    if len(data) < 2:
        return
    target = _TARGETS[data[0] % len(_TARGETS)]
    loop.failures.clear()
    loop.run_until_complete(target(random.Random(data[1]), data[2:_MOST_BYTES]))
    assert not loop.failures, loop.failures


def seeds() -> dict[str, bytes]:
    """Initial inputs by name: every message of the corpus, and some sequences of messages."""
    requests, replies = VALID + ODD + MALFORMED, REPLIES + BAD_REPLIES
    sections = [message.partition(b"\r\n\r\n")[0] + b"\r\n" for message in [*requests, *replies]]
    streams = {
        0: [*requests, b"".join(VALID)],
        1: [*replies, *(REPLIES[4] + reply for reply in replies)],
        2: [request + GET + BETWEEN + reply for request in VALID + ODD for reply in replies],
        3: [first + BETWEEN + second for first in sections for second in (first, sections[2], sections[3])],
    }
    return {
        f"{kind}-{number}": bytes([kind, number % 256]) + stream
        for kind, some in streams.items()
        for number, stream in enumerate(some)
    }


def regressions() -> dict[str, bytes]:
    """Inputs that once broke a rule, by file name."""
    folder = Path(__file__).with_name("regressions")
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.suffix != ".md"}


async def _client(chance: random.Random, stream: bytes) -> None:
    """A client's bytes mean the same however they are split; its connection ends in time or stays usable."""
    whole = await seen([stream], AT_ONCE)
    split = await seen(pieces(stream, _cuts(chance, stream)), _delays(chance))
    assert split == whole

    client = MemoryClient(_greet, TIGHT)
    await client.transport.receive(stream)
    await client.settle()
    assert all(one.status < 500 or one.status in _OF_OUR_OWN for one in client.observed)
    if client.transport.is_closing() or client.transport.half_closed or chance.random() < 0.5:
        await client.pass_time(_LATER)
        assert client.transport.lost, "it is kept for ever"
        return
    client.transport.finish()
    await client.settle()
    assert client.transport.is_closing() or client.transport.half_closed
    if not client.transport.half_closed:  # no request is in progress, so the next one must be answered
        await _check_in_sync(stream)


async def _check_in_sync(stream: bytes) -> None:
    client = MemoryClient(_greet, TIGHT)
    await client.transport.receive(stream)
    await client.settle()
    before = len(client.observed)
    await client.transport.receive(GET)
    await client.settle()
    (answered,) = client.observed[before:]
    assert (answered.status, answered.head.target) == (200, b"/get")


async def _greet(exchange: Exchange) -> None:
    await asyncio.sleep(0)
    exchange.respond(200, b"", b"hello")


async def _backend(chance: random.Random, stream: bytes) -> None:
    """A backend's bytes mean the same however they are split, and a reply ends in time."""
    is_head, ends = chance.random() < 0.1, chance.random() < 0.5
    whole = await relayed([stream], is_head=is_head, ends=ends, takes_chunks=False)
    cuts = _cuts(chance, stream)
    split = await relayed(pieces(stream, cuts), is_head=is_head, ends=ends, takes_chunks=chance.random() < 0.5)
    assert whole.fault is None or issubclass(whole.fault, BackendError)
    assert (split.begun, split.fault, split.ended, split.reusable) == (
        whole.begun,
        whole.fault,
        whole.ended,
        whole.reusable,
    )
    assert split.payload.startswith(whole.payload) if whole.fault else split.payload == whole.payload
    await _check_times_out(stream)


async def _check_times_out(stream: bytes) -> None:
    """A reply that is incomplete after ``stream`` fails at its deadline."""
    backend = MemoryBackend()
    result = backend.connection.request([GET], Sink(), is_head=False)
    await backend.transport.receive(stream)
    if not result.done():
        await backend.pass_time(_LATER)
    assert result.done(), "it is waited for for ever"
    with contextlib.suppress(BackendError):
        result.result()


async def _proxy(chance: random.Random, data: bytes) -> None:
    """Whatever both sides send, a backend gets unambiguous requests, and no incomplete reply looks complete."""
    stream, _, reply = data.partition(BETWEEN)
    sent: list[tuple[Exchange, bytes]] = []
    broken: list[Exchange] = []

    async def forward(exchange: Exchange) -> None:
        backend = MemoryBackend()
        request = backend_request(exchange, close=False)
        asking = backend.connection.request([request], exchange, is_head=exchange.head.method == "HEAD")
        sent.append((exchange, request))
        for block in pieces(reply, _cuts(chance, reply)):
            await backend.transport.receive(block)
            await asyncio.sleep(0)
        backend.transport.finish()
        try:
            await asking
        except BackendError:
            if exchange.begun:
                broken.append(exchange)
            raise

    client = MemoryClient(forward, LIMITS)
    for block in pieces(stream, _cuts(chance, stream)):
        await client.transport.receive(block)
    await client.settle()
    for exchange, request in sent:
        check_framing(exchange, request, close=False)
        check_with_another_parser(exchange, request)
    assert b"went wrong inside the proxy" not in client.transport.sent or b"went wrong" in data
    _check_replies(client, broken)


def _check_replies(client: MemoryClient, broken: list[Exchange]) -> None:
    """h11 must find one complete reply to the client for each exchange, or see that the reply is broken."""
    reader = h11.Connection(h11.CLIENT)
    reader.receive_data(bytes(client.transport.sent))
    for number, exchange in enumerate(client.observed, 1):
        reader.send(h11.Request(method=exchange.head.method, target="/", headers=[("host", "a")]))
        reader.send(h11.EndOfMessage())
        complete = _read_reply(reader, connection_ended=client.transport.is_closing())
        if exchange in broken:
            assert exchange.outcome is Outcome.BROKEN
            assert number == len(client.observed)
            assert client.transport.is_closing()
            assert not complete or client.transport.resets
            return
        assert complete
        if h11.MUST_CLOSE in (reader.our_state, reader.their_state):
            assert number == len(client.observed)
            return
        reader.start_next_cycle()


def _read_reply(reader: h11.Connection, *, connection_ended: bool) -> bool:
    """Whether a complete reply is there."""
    while not isinstance(event := reader.next_event(), h11.EndOfMessage):
        if event is h11.NEED_DATA:
            if not connection_ended:
                return False
            try:
                reader.receive_data(b"")
            except RuntimeError:  # it got the end of the connection before
                return False
            connection_ended = False
            try:
                return isinstance(reader.next_event(), h11.EndOfMessage)
            except h11.RemoteProtocolError:
                return False
    return True


async def _parsers(chance: random.Random, data: bytes) -> None:
    """Parsing raises only declared exceptions, and a recalled section equals the parsed one."""
    first, _, second = data.partition(BETWEEN)
    requests, replies = HeadMemory[RequestHead](), HeadMemory[ReplyHead]()
    for section in (first, second):
        _check_memory(requests, section, lambda text: parse_request_head(text, LIMITS.head), ClientError)
        _check_memory(replies, section, parse_reply_head, InvalidReply)
    body = ChunkedBody()
    try:
        for block in pieces(first, _cuts(chance, first)):
            if not body.complete:
                body.feed(block)
    except InvalidChunk:
        return


def _check_memory(
    memory: HeadMemory[Any], section: bytes, parse: Callable[[bytes], Any], refusal: type[Exception]
) -> None:
    recalled = memory.recall(section)
    try:
        head = parse(section)
    except refusal:
        assert recalled is None
        return
    if recalled is not None:
        assert all(getattr(recalled, name) == getattr(head, name) for name in head.__slots__)
    memory.remember(section, head)


def _cuts(chance: random.Random, stream: bytes) -> list[int]:
    count = chance.choice([0, 1, 2, 5, 20, len(stream)])
    return [chance.randrange(len(stream) + 1) for _ in range(count)]


def _delays(chance: random.Random) -> Delays:
    turns = [chance.randrange(4) for _ in range(3)]
    return Delays(turns, chance.randrange(5), chance.choice([None, 1, 100]), chance.randrange(200))


_Target = Callable[[random.Random, bytes], Coroutine[None, None, None]]
_TARGETS: tuple[_Target, ...] = (_client, _backend, _proxy, _parsers)
