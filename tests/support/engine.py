"""An engine that answers polls as llama.cpp or vLLM does, and clients' requests as a test specifies.

::

    async with Engine() as engine:              # answers every request with its own address and the path
    async with Engine(fails_with(503)) as engine:
    async with Engine(hangs, owner="vllm", processing=3) as engine:
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from support.fakes.engine import EngineConnection, FakeEngine, http_reply

__all__ = ["EVENT", "LOADING", "STREAM_HEAD", "Answer", "Engine", "answers_with", "chunk", "fails_with", "hangs"]

Answer = Callable[[EngineConnection], Coroutine[None, None, None]]
"""Answers one request that has been read from the connection."""

STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'data: {"n": 1}\n\n'
LOADING = http_reply(b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}', 503)

# Of other engines: asked in polls, and to recognize an engine that its ``owned_by`` does not name.
_UNKNOWN_PAGES = frozenset({
    "/metrics", "/props", "/is_paused", "/version", "/", "/info", "/openapi.json", "/lmstudio-greeting",
    "/.well-known/serviceinfo",
})  # fmt: skip
_ABOUT_PROMPTS = ("/tokenize", "/detokenize")
_METRICS = {
    "llamacpp": """\
# TYPE llamacpp:tokens_predicted_total counter
llamacpp:tokens_predicted_total 190
# TYPE llamacpp:n_decode_total counter
llamacpp:n_decode_total {decoded}
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing {processing}
# TYPE llamacpp:requests_deferred gauge
llamacpp:requests_deferred {waiting}
""",
    "vllm": """\
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="m"}} {processing}
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{engine="0",model_name="m"}} {waiting}
""",
}


def chunk(payload: bytes) -> bytes:
    """``payload`` as one chunk of a body."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def answers_with(*blocks: bytes) -> Answer:
    """Answers with these bytes."""

    async def answer(connection: EngineConnection) -> None:
        connection.send(*blocks)

    return answer


def fails_with(status: int, fields: bytes = b"") -> Answer:
    """Answers with an error of the engine."""
    return answers_with(http_reply(b'{"error": "its own"}', status, fields))


async def hangs(connection: EngineConnection) -> None:
    """Never answers; ends when the client disconnects."""
    await connection.ended


def _path(request: bytes) -> str:
    """The path of a request, without copying its body."""
    line = request[: request.index(b"\r\n")].decode("latin-1")
    return line.split(" ", 2)[1].partition("?")[0]


class Engine(FakeEngine):
    """The engine; see the module.

    Attributes:
        answer: answers clients' requests; by default with the engine's address and the path, once ``freed`` is set.
        freed: set while the default answer is sent; initially set.
        held: set when a request for the default answer has arrived.
        begins: whether the default answer, except its last byte, is sent before ``freed`` is set.
        owner: ``owned_by`` in its models list: ``llamacpp``, ``vllm``, or any other.
        models: entries of its models list, without ``owned_by``.
        processing, waiting, decoded: values in its metrics.
        slots: value in its ``/props``; ``None`` for none.
        health: the status of ``GET /health``, or an answer.
        pages: answers to ``GET`` by path, instead of the usual ones.
        served: clients' requests that it accepted, in order.
    """

    def __init__(
        self,
        answer: Answer | None = None,
        *,
        owner: str = "llamacpp",
        models: Sequence[dict[str, Any]] = ({"id": "m", "object": "model"},),
        processing: int = 0,
        waiting: int = 0,
        health: int | Answer = 200,
        begins: bool = False,
    ) -> None:
        super().__init__(self._serve)
        self.answer = self._answer_when_freed if answer is None else answer
        self.freed, self.held = asyncio.Event(), asyncio.Event()
        self.freed.set()
        self.begins = begins
        self.owner = owner
        self.models = models
        self.processing, self.waiting, self.decoded = processing, waiting, 0
        self.slots: int | None = None
        self.health = health
        self.pages: dict[str, Answer] = {}
        self.served: list[bytes] = []
        self._serving: set[EngineConnection] = set()

    @property
    def open_requests(self) -> int:
        """Number of connections with clients' requests that the peer has not ended."""
        return sum(not connection.ended.done() for connection in self._serving)

    @property
    def asked(self) -> list[tuple[str, str, bytes]]:
        """Method, target and body of every request, in order."""
        split = (request.partition(b"\r\n\r\n") for request in self.requests)
        lines = ((head.decode("latin-1").split(" ", 2), body) for head, _, body in split)
        return [(method, target, body) for (method, target, _), body in lines]

    def count(self, path: str) -> int:
        """Number of requests for ``path``, with any method and query."""
        return sum(_path(request) == path for request in self.requests)

    async def stop(self) -> None:
        """Crash: refuse new connections and break open ones."""
        self.freed.set()
        await self.go()
        self.drop_clients()

    async def go(self) -> None:
        """Refuse new connections; open ones stay."""
        loop = asyncio.get_running_loop()
        for listener in self._server.sockets:
            loop.remove_reader(listener.fileno())
        for _ in range(3):  # connections being accepted would be lost inside the event loop
            await asyncio.sleep(0)
        self.refuse()

    async def listen_again(self) -> None:
        """Listen again after :meth:`go`."""
        make = asyncio.get_running_loop().create_server
        self._server = await make(lambda: EngineConnection(self), self.host, self.port)

    def die(self) -> None:
        """Break open connections and listen no more; after :meth:`go` if connections may be arriving."""
        self.refuse()
        self.drop_clients()

    def drop_clients(self) -> None:
        """Break all connections."""
        for connection in self.connections:
            connection.reset()

    async def _serve(self, connection: EngineConnection) -> None:
        while True:
            request = await connection.request()
            path = _path(request)
            if request.startswith(b"GET /health ") and isinstance(self.health, int):
                connection.send(http_reply(b'{"status":"ok"}', self.health))
            elif request.startswith(b"GET /health ") and callable(self.health):
                await self.health(connection)
            elif request.startswith(b"GET ") and path in self.pages:
                await self.pages[path](connection)
            elif request.startswith(b"GET ") and (page := self._page(path)) is not None:
                connection.send(page)
            elif path == "/apply-template" and self.owner == "llamacpp":
                connection.send(http_reply(b'{"prompt": "<user>a<assistant>begun"}'))
            elif path in _ABOUT_PROMPTS and self.owner == "vllm":
                connection.send(http_reply(b'{"tokens": [1], "prompt": "<user>a<assistant>begun \\n\\n"}'))
            elif path == "/tokenize" and self.owner in _METRICS:
                connection.send(http_reply(b'{"tokens": [1, 2, 3]}'))
            else:
                self.served.append(request)
                self._serving.add(connection)
                await self.answer(connection)

    async def _answer_when_freed(self, connection: EngineConnection) -> None:
        path = _path(connection.requests[-1])
        reply = http_reply(
            json.dumps({"engine": self.url, "path": path}).encode(), fields=b"content-type: application/json\r\n"
        )
        begun = len(reply) - 1 if self.begins else 0
        connection.send(reply[:begun])
        self.held.set()
        await self.freed.wait()
        connection.send(reply[begun:])

    def _page(self, path: str) -> bytes | None:
        if path == "/v1/models":
            models = [entry | {"owned_by": self.owner} for entry in self.models]
            return http_reply(json.dumps({"object": "list", "data": models}).encode())
        if path == "/metrics" and self.owner in _METRICS:
            figures = {"processing": self.processing, "waiting": self.waiting, "decoded": self.decoded}
            page = _METRICS[self.owner].format(**figures)
            return http_reply(page.encode())
        if path == "/props" and self.slots is not None:
            return http_reply(b'{"total_slots": %d}' % self.slots)
        return http_reply(b"{}", 404) if path in _UNKNOWN_PAGES else None
