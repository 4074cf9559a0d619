"""One request as a client sees it, on its own connection, and how it ended."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Asked", "Connection", "Ending", "OpenRequests", "Result", "chat"]

PATIENCE_SECONDS = 60.0
"""No request may take longer: the time of two backends, a wait in the queue before each, and a stream."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER, on, zero seconds
_KEPT_BYTES = 4 * 1024 * 1024  # of a reply
_numbers = itertools.count(1)

Ending = Literal["whole", "broken", "no reply", "stuck", "left"]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for a model."""

    user: str
    model: str
    tokens: int
    stream: bool
    message: bytes


@dataclass(slots=True)
class Result:
    """The result of a request.

    Attributes:
        kind: the kind of client.
        began, ended: times of the monotonic clock.
        status: 0 if there was none.
        ending: ``whole``: complete by its framing; ``broken``: it ended within the body; ``no reply``: the connection
            ended without one; ``stuck``: not in time; ``left``: the client disconnected.
    """

    kind: str
    asked: Asked | None = None
    began: float = 0.0
    ended: float = 0.0
    status: int = 0
    fields: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    ending: Ending = "no reply"

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")

    @property
    def backend(self) -> str:
        """Base URL of the backend that replied; empty if the proxy itself did."""
        return self.fields.get("x-backend", "")

    @property
    def code(self) -> str:
        """The error code of the proxy or of an engine."""
        try:
            error: dict[str, Any] = json.loads(self.body)["error"]
            return str(error.get("code"))
        except (ValueError, KeyError, TypeError, AttributeError):
            return ""

    def events(self) -> list[str]:
        """The data of the events of a stream, without comments."""
        return [part[6:] for part in self.text.split("\n\n") if part.startswith("data: ")]


class OpenRequests:
    """Counts the open requests of all clients, for comparison with the proxy's count.

    Each side sees the events of the other with a delay, so bounds are for a time window. A slowly read reply ends for
    the proxy before it ends for the client, so such a request may or may not count.
    """

    _SEEN_SECONDS = 0.5

    def __init__(self) -> None:
        self._open: dict[int, tuple[float, bool]] = {}
        self._closed: list[tuple[float, float]] = []  # begin and end; recent ones only
        self._keys = itertools.count()

    @contextmanager
    def one(self, *, is_certain: bool) -> Iterator[None]:
        """A context in which a request counts as open."""
        key = next(self._keys)
        self._open[key] = (time.monotonic(), is_certain)
        try:
            yield
        finally:
            began, _ = self._open.pop(key)
            self._closed.append((began, time.monotonic()))

    @property
    def count(self) -> int:
        return len(self._open)

    def bounds(self, began: float, ended: float) -> tuple[int, int]:
        """The minimum and maximum that the proxy may count at any time from ``began`` to ``ended``."""
        since = began - self._SEEN_SECONDS
        self._closed = [one for one in self._closed if one[1] >= since - 60]
        least = sum(is_certain and start <= since for start, is_certain in self._open.values())
        most = len(self._open) + sum(start <= ended and over >= since for start, over in self._closed)
        return least, most


def chat(model: str, tokens: int, *, stream: bool, pad: int = 1, fields: str = "", path: str = "") -> Asked:
    """A request for a model, unique by its ``user``."""
    user = f"soak-{next(_numbers)}"
    messages = [{"role": "user", "content": f"Tell {user} a story."}]
    asked = {"model": model, "messages": messages, "max_tokens": tokens, "stream": stream, "user": user, "pad": pad}
    body = json.dumps(asked)
    path = path or "/v1/chat/completions"
    head = f"POST {path} HTTP/1.1\r\nhost: soak\r\ncontent-type: application/json\r\n{fields}"
    message = f"{head}content-length: {len(body)}\r\n\r\n{body}".encode()
    return Asked(user, model, tokens, stream, message)


class Connection:
    """A client's connection.

    Args:
        receive_bytes: size of the receive buffer; ``None`` for the system's default.
    """

    def __init__(self, port: int, receive_bytes: int | None = None) -> None:
        self._port = port
        self._receive_bytes = receive_bytes
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter | None = None

    @property
    def is_open(self) -> bool:
        return self._writer is not None and not self._writer.is_closing() and not self._reader.at_eof()

    async def open(self) -> None:
        """Connect unless connected."""
        if self.is_open:
            return
        self.close()
        endpoint = socket.socket()
        try:
            endpoint.setblocking(False)
            if self._receive_bytes is not None:
                endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_bytes)
            await asyncio.get_running_loop().sock_connect(endpoint, ("127.0.0.1", self._port))
            self._reader, self._writer = await asyncio.open_connection(sock=endpoint, limit=2**16)
        except BaseException:
            endpoint.close()
            raise

    async def send(self, message: bytes) -> None:
        """Send all bytes."""
        assert self._writer is not None
        self._writer.write(message)
        await self._writer.drain()

    def close(self, *, resets: bool = False) -> None:
        """Close it, with a FIN or a reset."""
        if self._writer is None:
            return
        writer, self._writer = self._writer, None
        if resets and not writer.is_closing():
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            writer.transport.abort()
        else:
            writer.close()

    async def read_head(self, result: Result) -> None:
        """The reply's status and fields."""
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status_line, *lines = head.split("\r\n")
        result.status = int(status_line.split(" ", 2)[1])
        result.ending = "broken"  # until it is known to be complete
        for line in lines:
            name, _, value = line.partition(":")
            result.fields[name.lower()] = value.strip()

    async def read_body(self, result: Result, pause_seconds: float = 0.0, most_pieces: int | None = None) -> bool:
        """Read the body to its end or for a number of pieces; returns whether it is complete."""
        fields = result.fields
        pieces = 0
        if "chunked" in fields.get("transfer-encoding", ""):
            while (size := int(await self._reader.readuntil(b"\r\n"), 16)) > 0:
                self._keep(result, await self._reader.readexactly(size))
                await self._reader.readexactly(2)
                pieces += 1
                if most_pieces is not None and pieces >= most_pieces:
                    return False
                if pause_seconds:
                    await asyncio.sleep(pause_seconds)
            await self._reader.readexactly(2)
        elif "content-length" in fields:
            left = int(fields["content-length"])
            while left and (piece := await self._reader.read(min(left, 2**16))):
                self._keep(result, piece)
                left -= len(piece)
                if pause_seconds:
                    await asyncio.sleep(pause_seconds)
            if left:
                return False
        else:
            self._keep(result, await self._reader.read(_KEPT_BYTES))
        result.ending = "whole"
        if fields.get("connection", "") == "close":
            self.close()
        return True

    def _keep(self, result: Result, piece: bytes) -> None:
        if len(result.body) + len(piece) <= _KEPT_BYTES:
            result.body += piece
