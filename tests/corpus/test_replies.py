"""Replies of ``replies.yaml``, sent to a listening proxy whole, byte by byte, and with a pause after their head."""

from __future__ import annotations

import asyncio

import pytest

from corpus.conftest import YES, RunningProxy
from corpus.notation import BadReply, OddReply, bad_replies, odd_replies
from support.fakes.engine import EngineConnection, http_reply
from support.fakes.front import Client, Reply, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

_PIECES = 800  # maximum; a shorter reply is sent byte by byte
_HOP_BY_HOP = {"keep-alive", "proxy-connection", "te", "trailer", "upgrade", "x-named"}
_PATIENCE_SECONDS = 5.0  # deadline for expected replies
_CASE = b"/case "


class Scripted:
    """Makes the engine answer ``/case`` with one reply of the corpus, and all other requests with ``yes``.

    Attributes:
        connection: the connection of the request; ``None`` before it arrives.
        head_read: set by the test once the client has the head.
        all_read: set by the test once the client has the reply.
        done: everything has been sent, and read if the proxy reads it.
    """

    def __init__(self, reply: bytes, split: str, *, later: bytes = b"", ends: bool = False) -> None:
        self._reply, self._split, self._later, self._ends = reply, split, later, ends
        self.connection: EngineConnection | None = None
        self.head_read = asyncio.Event()
        self.all_read = asyncio.Event()
        self.done = asyncio.Event()

    async def answer(self, connection: EngineConnection, request: bytes) -> None:
        """Answer one request."""
        if _CASE not in request:
            connection.send(http_reply(YES))
            return
        assert self.connection is None, "the request was repeated"
        self.connection = connection
        await self._reply_to(connection)
        await asyncio.sleep(0)
        self.done.set()

    async def _reply_to(self, connection: EngineConnection) -> None:
        if self._split == "head first":
            head, end, body = self._reply.partition(b"\r\n\r\n")
            connection.send(head + end)
            await self.head_read.wait()
            connection.send(body)
        else:
            await self._send_pieces(connection, len(self._reply) if self._split == "whole" else _PIECES)
        if self._later:
            await self.all_read.wait()
            connection.send(self._later)
        if self._ends:
            connection.finish()

    async def _send_pieces(self, connection: EngineConnection, count: int) -> None:
        size = max(1, len(self._reply) if self._split == "whole" else -(-len(self._reply) // count))
        for start in range(0, len(self._reply), size):
            if connection.ended.done():
                return  # the proxy closed the connection
            connection.send(self._reply[start : start + size])
            await asyncio.sleep(0)  # the proxy runs in this event loop and reads the piece now
            await asyncio.sleep(0)


async def ask(client: Client, method: str) -> None:
    """Send the request for the case."""
    client.send(
        f"{method} /case HTTP/1.1\r\nHost: a\r\n".encode() + b"Content-Length: 0\r\n" * (method == "POST") + b"\r\n"
    )


async def get_reply(client: Client, script: Scripted, method: str) -> Reply:
    """Read the reply.

    Raises:
        EOFError, ConnectionError: it does not end cleanly.
    """
    status, version, fields = await client.head()
    script.head_read.set()
    if method == "HEAD" or status in (204, 304):
        body = b""
    elif "content-length" in fields:
        body = await client.read(int(fields["content-length"]))
    else:
        assert fields["transfer-encoding"] == "chunked"
        body = await read_chunks(client)
    script.all_read.set()
    return Reply(status, version, fields, body)


async def read_chunks(client: Client) -> bytes:
    """Read a chunked body without extensions and trailers, as the proxy writes it."""
    body = b""
    while size := int(await read_line(client), 16):
        body += await client.read(size)
        assert await client.read(2) == b"\r\n"
    assert await read_line(client) == b""
    return body


async def read_line(client: Client) -> bytes:
    """Read up to CRLF."""
    line = b""
    while not line.endswith(b"\r\n"):
        line += await client.read(1)
    return line[:-2]


SPLITS = {"refused": ("whole", "pieces"), "broken": ("whole", "pieces", "head first"), "cut": ("whole", "pieces")}
BAD = [
    pytest.param(entry, split, id=f"{entry.name}-{split}") for entry in bad_replies() for split in SPLITS[entry.outcome]
]


@pytest.mark.parametrize(("entry", "split"), BAD)
async def test_malformed_reply_is_refused(watched: RunningProxy, entry: BadReply, split: str) -> None:
    script = Scripted(entry.reply, split, later=entry.later, ends=entry.ends)
    watched.engine.answer = script.answer
    client = await watched.connect()
    await ask(client, entry.request_method)
    if entry.outcome == "cut":
        reply = await get_reply(client, script, entry.request_method)
        assert reply.status == int(entry.reply[9:12])
        assert reply.body == entry.body
    else:
        await check_refused(client, script, entry, split)
    client.leave()
    await script.done.wait()
    await answers_again(watched)
    connection = script.connection
    assert connection is not None
    assert _CASE in connection.requests[-1], "the connection was used again"
    async with asyncio.timeout(_PATIENCE_SECONDS):
        await connection.ended
    await until(lambda: watched.engine.is_in_step)


async def check_refused(client: Client, script: Scripted, entry: BadReply, split: str) -> None:
    """Check that the client gets 502 or, if the fault comes after the head, a reply without a clean end."""
    try:
        reply = await get_reply(client, script, entry.request_method)
    except (EOFError, ConnectionError):
        assert entry.outcome == "broken"
        assert script.head_read.is_set()
    else:
        assert reply.status == 502
        assert split != "head first"
        assert b"hello" not in reply.body


async def answers_again(watched: RunningProxy) -> None:
    """Wait until good requests are answered: a backend that broke a connection is polled first."""
    async with asyncio.timeout(_PATIENCE_SECONDS):
        while not await watched.is_well("/after"):  # noqa: ASYNC110 - the proxy has no event for tests
            await asyncio.sleep(0.005)


ODD = [
    pytest.param(entry, split, id=f"{entry.name}-{split}") for entry in odd_replies() for split in ("whole", "pieces")
]


@pytest.mark.parametrize(("entry", "split"), ODD)
async def test_unusual_reply_is_relayed_with_its_meaning(watched: RunningProxy, entry: OddReply, split: str) -> None:
    script = Scripted(entry.reply, split, ends=entry.ends)
    watched.engine.answer = script.answer
    client = await watched.connect()
    await ask(client, entry.request_method)
    reply = await get_reply(client, script, entry.request_method)
    client.leave()
    assert (reply.status, reply.body) == (entry.status, entry.body)
    assert not reply.fields.keys() & _HOP_BY_HOP
    assert await watched.is_well("/after")


async def test_corpus_is_complete() -> None:
    """Protects against losing entries unnoticed by a mistake in the file."""
    assert len(bad_replies()) > 150
    assert len(odd_replies()) > 10
