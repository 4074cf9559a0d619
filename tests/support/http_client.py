"""An HTTP/1.1 client with separate steps: connect, send, read the head, read an event, disconnect.

Each request has its own connection, so that a test sees exactly the bytes of its reply.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

__all__ = ["Call", "Reply", "chat", "send"]

_DEADLINE_SECONDS = 60.0
_EVENT_END = b"\n\n"


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply, as far as it was received.

    Attributes:
        headers: by lower-case name.
        body: without the chunks' framing.
        complete: whether it is complete by its framing.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes
    complete: bool

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Call:
    """One request on its own connection.

    Args:
        url: address to connect to and value of ``Host``; its path is ignored.
        target: path and query, sent unchanged.
        body: bytes, or an object to send as JSON; ``None`` for no body.
        headers: further fields.
    """

    def __init__(
        self, url: str, target: str, body: object = None, *, method: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        parts = urlsplit(url)
        self._host, self._port = str(parts.hostname), int(parts.port or 80)
        content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        fields = {"Host": parts.netloc, **(headers or {})}
        if body is not None:
            fields = {"Content-Type": "application/json", "Content-Length": str(len(content)), **fields}
        method = method or ("GET" if body is None else "POST")
        lines = (f"{name}: {value}\r\n" for name, value in fields.items())
        self._request = f"{method} {target} HTTP/1.1\r\n{''.join(lines)}\r\n".encode() + content
        self._has_body = method != "HEAD"
        self.status = 0
        self.headers: dict[str, str] = {}
        self.complete = False
        self._unread = b""  # body bytes after the last event that was read

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.leave()

    def send(self) -> None:
        """Send the whole request."""
        self._writer.write(self._request)

    async def head(self) -> int:
        """Read the header section of the reply; returns the status."""
        async with asyncio.timeout(_DEADLINE_SECONDS):
            section = await self._reader.readuntil(b"\r\n\r\n")
        status_line, *lines = section.decode("latin-1").rstrip().split("\r\n")
        self.status = int(status_line.split(" ")[1])
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return self.status

    async def event(self) -> bytes:
        """The next server-sent event with its blank line; at the end of the body the rest, then nothing."""
        while _EVENT_END not in self._unread:
            piece = await self.piece()
            if not piece:
                rest, self._unread = self._unread, b""
                return rest
            self._unread += piece
        event, _, self._unread = self._unread.partition(_EVENT_END)
        return event + _EVENT_END

    async def reply(self) -> Reply:
        """Read everything that has not been read yet."""
        if not self.status:
            await self.head()
        pieces = [self._unread]
        while piece := await self.piece():
            pieces.append(piece)
        return Reply(self.status, self.headers, b"".join(pieces), self.complete)

    async def leave(self) -> None:
        """Close the connection in the usual way (FIN)."""
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    async def reset(self) -> None:
        """Break the connection (RST)."""
        connection: socket.socket = self._writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await self.leave()

    async def half_close(self) -> None:
        """Close the sending half; the other direction stays open."""
        self._writer.write_eof()

    async def ended(self) -> bool:
        """Whether the peer closes the connection without sending another byte."""
        async with asyncio.timeout(_DEADLINE_SECONDS):
            return not await self._reader.read(1)

    async def piece(self) -> bytes:
        """The next bytes of the body; empty at its end or where it is cut."""
        if self.complete or not self._has_body:
            self.complete = True
            return b""
        try:
            async with asyncio.timeout(_DEADLINE_SECONDS):
                return await self._chunk() if "transfer-encoding" in self.headers else await self._sized()
        except (asyncio.IncompleteReadError, ConnectionError):
            return b""

    async def _chunk(self) -> bytes:
        size = int(await self._reader.readuntil(b"\r\n"), 16)
        chunk = (await self._reader.readexactly(size + 2))[:-2]
        self.complete = not size
        return chunk

    async def _sized(self) -> bytes:
        content = await self._reader.readexactly(int(self.headers.get("content-length", 0)))
        self.complete = True
        return content


async def send(
    url: str, target: str, body: object = None, *, method: str = "", headers: Mapping[str, str] | None = None
) -> Reply:
    """Send one request and return the whole reply; arguments as for :class:`Call`."""
    async with Call(url, target, body, method=method, headers=headers) as call:
        call.send()
        return await call.reply()


def chat(max_tokens: int = 4, *, stream: bool = False, **fields: object) -> dict[str, object]:
    """The body of a chat completion with a deterministic answer."""
    messages = [{"role": "user", "content": "kin sol mer"}]
    return {"messages": messages, "max_tokens": max_tokens, "stream": stream, "temperature": 0, "seed": 1, **fields}
