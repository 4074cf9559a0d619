"""A normal client that measures the latency of proxies."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

__all__ = ["Latencies", "ask_for", "p99"]

_PAUSE_SECONDS = 0.002  # so that the client itself is no significant load
_PATIENCE_SECONDS = 10.0

_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass
class Latencies:
    """Seconds from the first byte of a request to the last byte of its reply, including a new connection if needed.

    Attributes:
        kept: requests on one kept connection.
        fresh: requests on new connections.
        failures: replies other than 200, and broken connections.
    """

    kept: list[float] = field(default_factory=list)
    fresh: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def p99(seconds: list[float]) -> float:
    return sorted(seconds)[math.ceil(len(seconds) * 0.99) - 1] if seconds else math.inf


async def ask_for(seconds: float, path: str, *urls: str) -> list[Latencies]:
    """Send requests to each of ``urls`` in turn, on a kept and on a new connection, for ``seconds``."""
    askers = [_Asker(url, path) for url in urls]
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for asker in askers:
            await asker.ask_twice()
            await asyncio.sleep(_PAUSE_SECONDS)
    for asker in askers:
        asker.close()
    await asyncio.sleep(0)
    return [asker.latencies for asker in askers]


class _Asker:
    def __init__(self, url: str, path: str) -> None:
        self.latencies = Latencies()
        address = urlsplit(url)
        self._address = str(address.hostname), int(address.port or 80)
        self._request = f"GET {path} HTTP/1.1\r\nHost: {address.netloc}\r\n\r\n".encode()
        self._kept: _Streams | None = None

    async def ask_twice(self) -> None:
        try:
            if self._kept is None:
                self._kept = await asyncio.open_connection(*self._address)
            began = time.monotonic()
            await _ask(self._kept, self._request)
            self.latencies.kept.append(time.monotonic() - began)
            began = time.monotonic()
            fresh = await asyncio.open_connection(*self._address)
            await _ask(fresh, self._request)
            self.latencies.fresh.append(time.monotonic() - began)
            fresh[1].transport.abort()
        except (OSError, EOFError, TimeoutError, AssertionError) as error:
            self.latencies.failures.append(repr(error))
            self.close()

    def close(self) -> None:
        if self._kept is not None:
            self._kept[1].transport.abort()
            self._kept = None


async def _ask(streams: _Streams, request: bytes) -> None:
    reader, writer = streams
    async with asyncio.timeout(_PATIENCE_SECONDS):
        writer.write(request)
        section = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert section.startswith(b"http/1.1 200 "), section
        length = section.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]
        await reader.readexactly(int(length))
