"""Clients that ask all the time, and what became of their requests."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from support.engine import STREAM_HEAD, Answer, chunk
from support.fakes.engine import EngineConnection, http_reply

__all__ = ["Outcomes", "answers_slowly", "under_load"]

EVENTS = 20
_EVENT = b'data: {"choices": [{"index": 0, "delta": {"content": "x"}}]}\n\n'
_DONE = b"data: [DONE]\n\n"
_ANSWER = json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": "hello"}}]}).encode()
_DEADLINE_SECONDS = 60.0
_PAUSE_SECONDS = 0.01


@dataclass
class Outcomes:
    """Requests by the kind of their client, as far as they have ended.

    Attributes:
        complete: whole answers.
        reused: of these, those on a connection that had served another request.
        refused: connections that were refused.
        crossed: requests on a connection that had been idle, and that the server closed without an answer.
        broken: everything else that is no whole answer, with the reason.
    """

    complete: Counter[str] = field(default_factory=Counter)
    reused: int = 0
    refused: int = 0
    crossed: int = 0
    broken: list[str] = field(default_factory=list)

    @property
    def failed(self) -> list[str]:
        """All that are not whole answers."""
        return [*self.broken, *["refused"] * self.refused, *["crossed"] * self.crossed]


def answers_slowly() -> Answer:
    """An engine's answers: a stream of about a second, or at once."""

    async def answer(connection: EngineConnection) -> None:
        if b'"stream": true' not in connection.requests[-1]:
            connection.send(http_reply(_ANSWER))
            return
        connection.send(STREAM_HEAD)
        for _ in range(EVENTS):
            connection.send(chunk(_EVENT))
            await asyncio.sleep(0.05)
        connection.send(chunk(_DONE), b"0\r\n\r\n")

    return answer


@asynccontextmanager
async def under_load(port: int, *, streams: int = 4, kept: int = 4, fresh: int = 2) -> AsyncIterator[Outcomes]:
    """Clients that ask the proxy at ``port`` until the block ends; then they finish their requests.

    Args:
        streams: clients with one stream after another, each on a new connection.
        kept: clients that keep their connection.
        fresh: clients with a new connection for each request.
    """
    outcomes, stop = Outcomes(), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for kind, count in (("stream", streams), ("kept", kept), ("fresh", fresh)):
            for _ in range(count):
                group.create_task(_ask(kind, port, outcomes, stop))
        try:
            yield outcomes
        finally:
            stop.set()


async def _ask(kind: str, port: int, outcomes: Outcomes, stop: asyncio.Event) -> None:
    connection = None
    while not stop.is_set():
        is_reused = connection is not None
        try:
            async with asyncio.timeout(_DEADLINE_SECONDS):
                if connection is None:
                    connection = await asyncio.open_connection("127.0.0.1", port)
                may_stay = await _exchange(*connection, is_stream=kind == "stream")
        except ConnectionRefusedError:
            outcomes.refused += 1
            may_stay = False
        except _Closed as error:
            may_stay = False
            if is_reused and not error.has_begun:
                outcomes.crossed += 1
            else:
                outcomes.broken.append(f"{kind}: closed, {error}")
        except (OSError, TimeoutError, ValueError) as error:
            may_stay = False
            outcomes.broken.append(f"{kind}: {error!r}")
        else:
            outcomes.complete[kind] += 1
            outcomes.reused += is_reused
        if connection is not None and not (kind == "kept" and may_stay):
            connection[1].close()
            connection = None
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), _PAUSE_SECONDS)
    if connection is not None:
        connection[1].close()


class _Closed(Exception):
    def __init__(self, received: bytes) -> None:
        super().__init__(repr(received[-100:]))
        self.has_begun = bool(received)


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_stream: bool) -> bool:
    """One request; whether the connection may serve another one. Raises unless the answer is whole."""
    body = json.dumps({"model": "m", "messages": [], "stream": is_stream}).encode()
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    )
    received = b""
    try:
        writer.write(head % len(body) + body)
        received = await reader.readuntil(b"\r\n\r\n")
        fields = received.lower()
        if not received.startswith(b"HTTP/1.1 200"):
            raise ValueError(received + await reader.read(500))
        if b"transfer-encoding: chunked" in fields:
            received += await reader.readuntil(b"\r\n0\r\n\r\n")
            if received.count(_EVENT) != EVENTS or _DONE not in received:
                raise ValueError(f"a stream with {received.count(_EVENT)} events, which ends {received[-100:]!r}")
        else:
            length = int(fields.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0])
            if await reader.readexactly(length) != _ANSWER:
                raise ValueError("another answer")
    except asyncio.IncompleteReadError as error:
        raise _Closed(received + error.partial) from None
    except ConnectionError:
        raise _Closed(received) from None
    return b"\r\nconnection: close" not in fields
