"""A llama.cpp router that follows a script, over real sockets: it loads models on demand, and counts that.

It behaves as builds from before September 2026 do: to load a model beyond ``most``, it ends the least recently used one
at once, and breaks the requests that this one is answering. A GET with ``?model=`` loads the model, too, unless it has
``autoload=false``. Source: llama.cpp ``tools/server/server-models.cpp`` at 00dd081.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs, urlsplit

from support.fakes.engine import EngineConnection, FakeEngine, http_reply

__all__ = ["ScriptedRouter"]


class _Model:
    def __init__(self, slots: int) -> None:
        self.loaded = asyncio.Event()
        self.slots = asyncio.Semaphore(slots)
        self.connections: list[EngineConnection] = []  # with requests in progress, in a slot or not


class ScriptedRouter(FakeEngine):
    """The router.

    Args:
        models: their names.
        most: models in memory at most.
        slots: of each model.
        load_seconds: how long loading takes.
        answer_seconds: how long an answer takes in its slot.

    Attributes:
        freed: set while answers are given; initially set.
        loads: the models that it loaded, in order.
        broken: requests that it broke to make room for another model.
        most_at_once: by model, most requests that were in progress at a time.
    """

    def __init__(
        self,
        models: Sequence[str] = ("a", "b"),
        *,
        most: int = 1,
        slots: int = 2,
        load_seconds: float = 0.05,
        answer_seconds: float = 0.01,
    ) -> None:
        super().__init__(self._serve)
        self.freed = asyncio.Event()
        self.freed.set()
        self.names = list(models)
        self.loads: list[str] = []
        self.broken = 0
        self.most_at_once = dict.fromkeys(models, 0)
        self._most, self._slots = most, slots
        self._load_seconds, self._answer_seconds = load_seconds, answer_seconds
        self._memory: dict[str, _Model] = {}  # the least recently used first
        self._loading: set[asyncio.Task[None]] = set()

    async def _serve(self, connection: EngineConnection) -> None:
        while True:
            request = await connection.request()
            head, _, body = request.partition(b"\r\n\r\n")
            method, target, _ = head.decode().split("\r\n")[0].split(" ")
            if method == "POST":
                await self._answer(connection, json.loads(body)["model"])
            else:
                connection.send(self._page(target))

    async def _answer(self, connection: EngineConnection, name: str) -> None:
        model = self._use(name)
        model.connections.append(connection)
        self.most_at_once[name] = max(self.most_at_once[name], len(model.connections))
        try:
            await model.loaded.wait()
            async with model.slots:
                await asyncio.sleep(self._answer_seconds)
                await self.freed.wait()
            if connection in model.connections:
                connection.send(http_reply(json.dumps({"model": name}).encode()))
        finally:
            if connection in model.connections:
                model.connections.remove(connection)

    def in_progress(self, name: str) -> int:
        """The number of requests for the model that are in progress."""
        model = self._memory.get(name)
        return 0 if model is None else len(model.connections)

    def has_loaded(self, name: str) -> bool:
        """Whether the model is in memory and answers requests."""
        return name in self._memory and self._memory[name].loaded.is_set()

    @property
    def is_loading(self) -> bool:
        """Whether a model is being loaded."""
        return any(not model.loaded.is_set() for model in self._memory.values())

    def load(self, name: str) -> None:
        """Load a model, as for a request that did not come through the proxy."""
        self._use(name)

    def _use(self, name: str) -> _Model:
        model = self._memory.pop(name, None)
        if model is None:
            if len(self._memory) >= self._most:
                self._end(next(iter(self._memory)))
            model = _Model(self._slots)
            self.loads.append(name)
            task = asyncio.get_running_loop().create_task(self._load(model))
            self._loading.add(task)
            task.add_done_callback(self._loading.discard)
        self._memory[name] = model
        return model

    async def _load(self, model: _Model) -> None:
        await asyncio.sleep(self._load_seconds)
        model.loaded.set()

    def _end(self, name: str) -> None:
        model = self._memory.pop(name)
        self.broken += len(model.connections)
        for connection in model.connections:
            connection.reset()
        model.connections.clear()
        model.loaded.set()

    def _page(self, target: str) -> bytes:
        split = urlsplit(target)
        query = parse_qs(split.query)
        name = query.get("model", [""])[0]
        if split.path == "/health":
            return http_reply(b'{"status":"ok"}')
        if split.path == "/v1/models":
            return _json({"object": "list", "data": [self._entry(name) for name in self.names]})
        if split.path == "/props" and not name:
            return _json({"role": "router", "max_instances": self._most, "models_autoload": True})
        if name not in self.names:
            return _json({"error": {"code": 400, "message": "model name is missing from the request"}}, 400)
        if name not in self._memory and query.get("autoload") == ["false"]:
            return _json({"error": {"code": 400, "message": "model is not loaded"}}, 400)
        model = self._memory.get(name) or self._use(name)
        if split.path == "/metrics":
            processing = len(model.connections)
            return http_reply(f"llamacpp:requests_processing {processing}\nllamacpp:requests_deferred 0\n".encode())
        return _json({"total_slots": self._slots})

    def _entry(self, name: str) -> dict[str, Any]:
        model = self._memory.get(name)
        value = "unloaded" if model is None else "loaded" if model.loaded.is_set() else "loading"
        return {
            "id": name,
            "object": "model",
            "owned_by": "llamacpp",
            "status": {"value": value, "args": ["llama-server", "--parallel", str(self._slots)]},
        }


def _json(value: object, status: int = 200) -> bytes:
    return http_reply(json.dumps(value).encode(), status, b"content-type: application/json\r\n")
