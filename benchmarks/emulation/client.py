"""An asynchronous chat completion on a new connection: thousands may wait at once."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from typing import Any

import h11
import msgspec

from completions.answers import Answer, AnswerReader, Failed, answer_in

__all__ = ["ask"]

_READ_BYTES = 65_536


async def ask(port: int, body: Mapping[str, Any], fields: Mapping[str, str], patience_seconds: float) -> Answer:
    """Request a completion.

    Args:
        body: members of the request; with ``stream``, it must ask for the usage.
        fields: further header fields.
        patience_seconds: time for the whole answer.

    Raises:
        Failed: the answer failed.
    """
    try:
        async with asyncio.timeout(patience_seconds):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                return await _asked(reader, writer, body, fields)
            finally:
                writer.close()
    except TimeoutError as error:
        raise Failed("timeout") from error
    except (OSError, h11.RemoteProtocolError, ValueError) as error:
        raise Failed(type(error).__name__) from error


async def _asked(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: Mapping[str, Any], fields: Mapping[str, str]
) -> Answer:
    http = h11.Connection(h11.CLIENT)
    payload = msgspec.json.encode(body)
    headers = {
        "Host": "127.0.0.1",
        "Content-Type": "application/json",
        "Content-Length": str(len(payload)),
        "Connection": "close",
    }
    request = h11.Request(method="POST", target="/v1/chat/completions", headers=list({**headers, **fields}.items()))
    writer.write((http.send(request) or b"") + (http.send(h11.Data(payload)) or b""))
    http.send(h11.EndOfMessage())
    with contextlib.suppress(ConnectionError):  # an early error reply can still be read
        await writer.drain()
    answer, pending, document = AnswerReader(), b"", bytearray()
    while not isinstance(event := await _next_event(http, reader), h11.EndOfMessage):
        if isinstance(event, h11.Response) and event.status_code != 200:
            raise Failed(str(event.status_code))
        if isinstance(event, h11.Data) and body.get("stream"):
            *lines, pending = (pending + event.data).split(b"\n")
            now = time.monotonic()
            for line in lines:
                answer.read(line, now)
        elif isinstance(event, h11.Data):
            document += event.data
    return answer.answer() if body.get("stream") else answer_in(bytes(document), time.monotonic())


async def _next_event(http: h11.Connection, reader: asyncio.StreamReader) -> object:
    while (event := http.next_event()) is h11.NEED_DATA:
        http.receive_data(await reader.read(_READ_BYTES))
    if isinstance(event, h11.ConnectionClosed):
        raise Failed("broken off")
    return event
