"""Engines that store responses and find them by id, as vLLM does."""

from __future__ import annotations

import itertools
import json

from support.engine import STREAM_HEAD, Engine, chunk
from support.fakes.engine import EngineConnection, http_reply

__all__ = ["StatefulEngine"]

_NOT_FOUND = b'{"error": {"message": "not found by %b", "code": 404}}'


class StatefulEngine(Engine):
    """Answers 404 for ids that it has not stored.

    Attributes:
        stored: the ids of its responses and stored completions.
        not_found: number of requests for other ids.
    """

    def __init__(self, name: str) -> None:
        super().__init__(self._answer, owner="vllm")
        self.name = name
        self.stored: list[str] = []
        self.not_found = 0
        self._numbers = itertools.count()

    async def _answer(self, connection: EngineConnection) -> None:
        head, _, body = connection.requests[-1].partition(b"\r\n\r\n")
        method, target, _ = head.decode().split(" ", 2)
        path = target.partition("?")[0]
        payload = json.loads(body) if body else {}
        if path == "/v1/responses":
            needed = payload.get("previous_response_id")
        elif method == "POST" and path in ("/v1/chat/completions", "/v1/streams/lookup"):
            needed = None
        else:
            needed = path.removeprefix("/v1/responses/").removeprefix("/v1/chat/completions/").partition("/")[0]
        if needed is not None and needed not in self.stored:
            self.not_found += 1
            connection.send(http_reply(_NOT_FOUND % self.name.encode(), 404))
        elif method == "POST" and path == "/v1/chat/completions":
            self.stored.append(f"chatcmpl-{self.name}{next(self._numbers)}")
            connection.send(http_reply(json.dumps({"id": self.stored[-1]}).encode()))
        elif path == "/v1/responses":
            self._respond(connection, is_streamed=payload.get("stream", False))
        else:
            if method == "DELETE":
                self.stored = [stored for stored in self.stored if stored != needed]
            connection.send(http_reply(json.dumps({"id": needed, "engine": self.name}).encode()))

    def _respond(self, connection: EngineConnection, *, is_streamed: bool) -> None:
        self.stored.append(f"resp_{self.name}{next(self._numbers)}")
        response = {"id": self.stored[-1], "object": "response", "output": [{"id": "resp_not_this", "text": "x" * 99}]}
        if not is_streamed:
            connection.send(http_reply(json.dumps(response).encode()))
            return
        events = ({"type": kind, "response": response} for kind in ("response.created", "response.completed"))
        lines = (f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events)
        connection.send(STREAM_HEAD, *map(chunk, lines), b"0\r\n\r\n")
