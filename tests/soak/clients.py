"""All kinds of clients, each a loop with a pause, so that two cores can run all of them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Callable, Coroutine

from soak.exchange import PATIENCE_SECONDS, Asked, Connection, OpenRequests, Result, chat

__all__ = ["KEEPING_KINDS", "KINDS", "Clients"]

_GARBAGE: tuple[tuple[bytes, frozenset[int]], ...] = (
    (b"GET /\x00 HTTP/1.1\r\nhost: soak\r\n\r\n", frozenset({400})),
    (b"GET / HTTP/1.1\r\nhost: soak\r\nx: " + b"y" * 40_000 + b"\r\n\r\n", frozenset({431})),
    (b"GET /" + b"y" * 9_000 + b" HTTP/1.1\r\nhost: soak\r\n\r\n", frozenset({414})),
    (b"GET / HTTP/1.1\r\nhost: soak\r\n" + b"x: y\r\n" * 150 + b"\r\n", frozenset({431})),
    (b"POST /v1/chat/completions HTTP/1.1\r\nhost: soak\r\ncontent-length: -1\r\n\r\n", frozenset({400})),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", frozenset({400})),
    (b"POST /v1/chat/completions HTTP/1.1\r\nhost: soak\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n",
     frozenset({400})),
)  # fmt: skip
_BAD_JSON = b'{"model": "soak", "messages": ['
_SCRAPED = ("/health", "/metrics", "/v1/models", "/readyz", "/")


class Clients:
    """The state shared by all clients.

    Args:
        port: of the proxy.
        seed: determines their requests and pauses.
        take: called with each result whose client stayed connected.
    """

    def __init__(self, port: int, seed: int, take: Callable[[Result], None]) -> None:
        self._port = port
        self._seed = seed
        self._take = take
        self.open = OpenRequests()
        self.done: Counter[str] = Counter()
        self.unexpected: Counter[str] = Counter()
        self.stopped: set[str] = set()  # kinds

    async def run(self, kind: str, number: int) -> None:
        """Run one client of ``kind`` until it is stopped."""
        draw = random.Random(f"{self._seed} {kind} {number}")
        once, pause_seconds = KINDS[kind][1:]
        connection = Connection(self._port)
        await asyncio.sleep(draw.uniform(0, pause_seconds + 1))
        while kind not in self.stopped:
            connection = await once(self, kind, connection, draw)
            self.done[kind] += 1
            await asyncio.sleep(pause_seconds * draw.uniform(0.5, 1.5))
        connection.close()

    # --- actions; each returns the client's connection after it

    async def stay(self, kind: str, connection: Connection, draw: random.Random) -> Connection:
        """Read a stream to its end."""
        fields = "x-queue-updates: true\r\n" if draw.random() < 0.2 else ""
        asked = chat(_model(draw), draw.randint(4, 50), stream=True, pad=draw.choice((1, 8, 200)), fields=fields)
        return await self._whole(kind, connection, asked)

    async def plain(self, kind: str, connection: Connection, draw: random.Random) -> Connection:
        """Wait for an answer without a stream."""
        return await self._whole(kind, connection, chat(_model(draw), draw.randint(4, 50), stream=False))

    async def unrepeatable(self, kind: str, connection: Connection, draw: random.Random) -> Connection:
        """The same on a path whose requests must not be repeated."""
        asked = chat("soak", draw.randint(4, 30), stream=False, path="/v1/soak")
        return await self._whole(kind, connection, asked)

    async def burst(self, kind: str, connection: Connection, draw: random.Random) -> Connection:
        """Send more concurrent requests than there are slots; some clients leave the queue."""
        async with asyncio.TaskGroup() as group:
            for _ in range(16):
                asked = chat("soak", draw.randint(10, 40), stream=draw.random() < 0.5)
                if draw.random() < 0.25:
                    group.create_task(self._disconnecting(asked, draw.uniform(0.1, 1.0), resets=draw.random() < 0.5))
                else:
                    group.create_task(self._in_burst(kind, asked))
        return connection

    async def disconnect_early(self, kind: str, connection: Connection, draw: random.Random) -> Connection:
        """Disconnect, usually before the first byte."""
        del kind
        connection.close()
        asked = chat(_model(draw), 50, stream=draw.random() < 0.5)
        await self._disconnecting(asked, draw.choice((0.0, 0.01, 0.03, draw.uniform(0, 1))), resets=draw.random() < 0.5)
        return Connection(self._port)

    async def disconnect_midway(self, kind: str, connection: Connection, draw: random.Random) -> Connection:
        """Disconnect during a stream."""
        connection.close()
        asked = chat(_model(draw), draw.randint(30, 60), stream=True)
        connection = Connection(self._port)
        result = Result(kind, asked)
        with self.open.one(is_certain=False):
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await connection.open()
                    await connection.send(asked.message)
                    await connection.read_head(result)
                    await connection.read_body(result, most_pieces=draw.randint(1, 10))
            connection.close(resets=draw.random() < 0.5)
        return connection

    async def read_slowly(self, kind: str, connection: Connection, draw: random.Random) -> Connection:
        """Read a long stream slowly, or stop reading until the proxy cuts the connection."""
        connection.close()
        stops = draw.random() < 0.3
        asked = chat("soak", 30, stream=True, pad=40_000)
        connection = Connection(self._port, receive_bytes=16 * 1024)
        if not stops:
            with self.open.one(is_certain=False):
                result = await self._ask(kind, connection, asked, pause_seconds=0.1)
            self._take(result)
            connection.close()
            return connection
        result = Result(kind, asked)
        with self.open.one(is_certain=False):
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await connection.open()
                await connection.send(asked.message)
                await connection.read_head(result)
                await asyncio.sleep(9)
            connection.close(resets=True)
        return connection

    async def send_slowly(self, kind: str, connection: Connection, draw: random.Random) -> Connection:
        """Send a request in pieces; some remain incomplete until the proxy rejects or cuts them."""
        connection.close()
        asked = chat("tiny", 8, stream=False)
        head_bytes = asked.message.index(b"\r\n\r\n") + 4
        gives_up_after = draw.choice((None, head_bytes // 2, head_bytes + 9))
        connection = Connection(self._port)
        result = Result(kind, asked, began=time.monotonic())
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await connection.open()
                for start in range(0, len(asked.message), 24):
                    if gives_up_after is not None and start >= gives_up_after:
                        break
                    await connection.send(asked.message[start : start + 24])
                    await asyncio.sleep(0.1)
                with self.open.one(is_certain=False):
                    await connection.read_head(result)
                    await connection.read_body(result)
        except TimeoutError:
            result.ending = "stuck"
        except (OSError, asyncio.IncompleteReadError):
            pass
        result.ended = time.monotonic()
        if gives_up_after is None:
            self._take(result)
        else:
            self._expect(kind, result, frozenset({408}))
        connection.close()
        return connection

    async def send_garbage(self, kind: str, connection: Connection, draw: random.Random) -> Connection:
        """Send malformed requests, and JSON that no engine can parse."""
        connection.close()
        if draw.random() < 0.3:
            fields = b"host: soak\r\ncontent-type: application/json\r\ncontent-length: %d" % len(_BAD_JSON)
            message = b"POST /v1/chat/completions HTTP/1.1\r\n%b\r\n\r\n%b" % (fields, _BAD_JSON)
            expected = frozenset({400, 429, 500, 502, 503, 504})  # from an engine in any state
        else:
            message, expected = draw.choice(_GARBAGE)
        connection = Connection(self._port)
        with self.open.one(is_certain=False):
            result = await self._ask(kind, connection, Asked("", "", 0, stream=False, message=message))
        self._expect(kind, result, expected)
        connection.close()
        return connection

    async def scrape(self, kind: str, connection: Connection, draw: random.Random) -> Connection:
        """Request the proxy's own paths."""
        message = f"GET {draw.choice(_SCRAPED)} HTTP/1.1\r\nhost: soak\r\n\r\n".encode()
        with self.open.one(is_certain=False):
            result = await self._ask(kind, connection, Asked("", "", 0, stream=False, message=message))
        self._expect(kind, result, frozenset({200, 503} if b"readyz" in message else {200}))
        return connection

    # --- internals

    async def _whole(self, kind: str, connection: Connection, asked: Asked) -> Connection:
        with self.open.one(is_certain=True):
            result = await self._ask(kind, connection, asked)
        self._take(result)
        return connection

    async def _in_burst(self, kind: str, asked: Asked) -> None:
        connection = Connection(self._port)
        await self._whole(kind, connection, asked)
        connection.close()

    async def _disconnecting(self, asked: Asked, after_seconds: float, *, resets: bool) -> None:
        connection = Connection(self._port)
        with self.open.one(is_certain=False):
            with contextlib.suppress(OSError):
                await connection.open()
                await connection.send(asked.message)
                await asyncio.sleep(after_seconds)
            connection.close(resets=resets)

    async def _ask(self, kind: str, connection: Connection, asked: Asked, pause_seconds: float = 0.0) -> Result:
        was_open = connection.is_open
        result = await self._ask_once(kind, connection, asked, pause_seconds)
        if was_open and result.ending == "no reply" and result.ended - result.began < 1:
            # The proxy closed an idle connection at the moment of its use: clients retry then.
            result = await self._ask_once(kind, connection, asked, pause_seconds)
        return result

    async def _ask_once(self, kind: str, connection: Connection, asked: Asked, pause_seconds: float) -> Result:
        result = Result(kind, asked, began=time.monotonic())
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await connection.open()
                await connection.send(asked.message)
                await connection.read_head(result)
                await connection.read_body(result, pause_seconds)
        except TimeoutError:
            result.ending = "stuck"
            connection.close(resets=True)
        except (OSError, asyncio.IncompleteReadError):
            connection.close()
        result.ended = time.monotonic()
        return result

    def _expect(self, kind: str, result: Result, statuses: frozenset[int]) -> None:
        if result.status not in statuses:
            self.unexpected[f"{kind}: {result.status} {result.code or result.ending}"] += 1


def _model(draw: random.Random) -> str:
    return draw.choice(("tiny", "soak"))


_Once = Callable[[Clients, str, Connection, random.Random], Coroutine[None, None, Connection]]

KINDS: dict[str, tuple[int, _Once, float]] = {
    "streams": (7, Clients.stay, 0.2),
    "plain": (5, Clients.plain, 0.2),
    "unrepeatable": (1, Clients.unrepeatable, 0.5),
    "bursts": (1, Clients.burst, 8.0),
    "leave early": (2, Clients.disconnect_early, 0.3),
    "leave midway": (2, Clients.disconnect_midway, 0.3),
    "read slowly": (2, Clients.read_slowly, 3.0),
    "send slowly": (2, Clients.send_slowly, 1.0),
    "garbage": (1, Clients.send_garbage, 0.3),
    "scrapers": (1, Clients.scrape, 0.3),
}
"""For each kind: the number of clients, their action, and the pause after it in seconds. A burst makes 39 at a time."""

KEEPING_KINDS = frozenset({"streams", "plain"})
"""Kinds that continue until no backend is suspect: each suspect needs a successful request."""
