"""An engine that is well as far as it is asked for its state, and does with clients' requests what a test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine

from support.fakes.engine import EngineConnection, FakeEngine, http_reply

__all__ = ["EVENT", "LOADING", "STREAM_HEAD", "Answer", "Engine", "chunk", "fails_with", "hangs", "says"]

Answer = Callable[[EngineConnection], Coroutine[None, None, None]]
"""Answers one request, which has been taken from the connection."""

STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'data: {"n": 1}\n\n'
LOADING = http_reply(b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}', 503)

_METRICS = {
    "llamacpp": "llamacpp:requests_processing {}\nllamacpp:requests_deferred {}\nllamacpp:n_decode_total {}\n",
    "vllm": "vllm:num_requests_running {}\nvllm:num_requests_waiting {}\n",
}


def chunk(payload: bytes) -> bytes:
    """``payload`` as one chunk of a body."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def says(*blocks: bytes) -> Answer:
    """Answers with these bytes."""

    async def answer(connection: EngineConnection) -> None:
        connection.send(*blocks)

    return answer


def fails_with(status: int, fields: bytes = b"") -> Answer:
    """Answers with an error of the engine's own."""
    return says(http_reply(b'{"error": "its own"}', status, fields))


async def hangs(connection: EngineConnection) -> None:
    """Never answers; goes when who asked does."""
    await connection.ended


class Engine(FakeEngine):
    """See above; it tells its state as llama.cpp does, or vLLM, or an engine that nobody knows.

    Attributes:
        answer: what clients' requests get.
        owner: which engine it is: ``llamacpp``, ``vllm``, or any other.
        processing, waiting, decoded: what its metrics say.
        slots: what its ``/props`` say; ``None``: nothing.
        health: how it answers ``GET /health``.
        pages: what is answered to ``GET`` of these paths, other than usual.
        served: the requests of clients that it took, in order.
    """

    def __init__(self, answer: Answer, *, owner: str = "llamacpp", processing: int = 0) -> None:
        super().__init__(self._serve)
        self.answer = answer
        self.owner = owner
        self.processing = processing
        self.waiting = self.decoded = 0
        self.slots: int | None = None
        self.health: Answer = says(http_reply())
        self.pages: dict[str, Answer] = {}
        self.served: list[bytes] = []
        self._serving: set[EngineConnection] = set()

    @property
    def open_requests(self) -> int:
        """Connections with requests of clients that the other side has not ended."""
        return sum(not connection.ended.done() for connection in self._serving)

    def asked(self, path: str = "") -> int:
        """How often it was asked for ``path``, or for anything, by the proxy itself."""
        begin = f"GET {path}".encode()
        return sum(request.startswith(begin) for request in self.requests)

    async def go(self) -> None:
        """Refuse connections from now on; those that are open stay."""
        loop = asyncio.get_running_loop()
        for listener in self._server.sockets:
            loop.remove_reader(listener.fileno())
        for _ in range(3):  # what is just being accepted would be lost in the loop's hands
            await asyncio.sleep(0)
        self.refuse()

    async def listen_again(self) -> None:
        """After :meth:`go`."""
        make = asyncio.get_running_loop().create_server
        self._server = await make(lambda: EngineConnection(self), "127.0.0.1", self.port)

    def die(self) -> None:
        """Be gone, and break what is open; after :meth:`go` where connections may just be coming."""
        self.refuse()
        for connection in self.connections:
            connection.reset()

    async def _serve(self, connection: EngineConnection) -> None:
        while True:
            request = await connection.request()
            path = request.split(b" ", 2)[1].decode()
            if path == "/health":
                await self.health(connection)
            elif request.startswith(b"GET ") and path in self.pages:
                await self.pages[path](connection)
            elif request.startswith(b"GET ") and (page := self._page(path)) is not None:
                connection.send(page)
            else:
                self.served.append(request)
                self._serving.add(connection)
                await self.answer(connection)

    def _page(self, path: str) -> bytes | None:
        if path == "/v1/models":
            models = [{"id": "m", "object": "model", "owned_by": self.owner}]
            return http_reply(json.dumps({"object": "list", "data": models}).encode())
        if path == "/metrics" and self.owner in _METRICS:
            return http_reply(_METRICS[self.owner].format(self.processing, self.waiting, self.decoded).encode())
        if path == "/props" and self.slots is not None:
            return http_reply(b'{"total_slots": %d}' % self.slots)
        return http_reply(b"{}", 404) if path in ("/metrics", "/props", "/is_paused") else None
