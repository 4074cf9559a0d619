"""Real llama.cpp servers with empty caches, which can be killed and restarted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from proxies.proxy import free_ports
from support.llama_server import LlamaServer
from support.tiny_gguf import ModelShape, write_tiny_gguf
from warm_prefixes.plan import ANSWER_TOKENS, ENGINES, MODEL

__all__ = ["Engines", "running_engines", "write_model"]

# Reading 2,000 tokens takes about 1 s on one core of 2026, writing a token 3 ms.
_SHAPE = ModelShape(embedding=256, layers=4, context=4096)
# Each idle connection that a proxy keeps occupies a llama.cpp thread; the default for two slots is six threads.
_OPTIONS = ("--slots", "2", "--context", "6144", "--threads", "1", "--http-threads", "64", "--alias", MODEL)


def write_model(folder: Path) -> Path:
    return write_tiny_gguf(folder / "model.gguf", _SHAPE)


class Engines:
    """Engines by number; each keeps its port across restarts."""

    def __init__(self, model: Path, size: int) -> None:
        self.ports = free_ports(size)
        self._model = model
        self._servers: dict[int, LlamaServer] = {}
        self._tokens_before = [0.0] * size  # written by servers that have been killed

    def start(self, number: int) -> None:
        """Start an engine, and wait until it answers."""
        self._servers[number] = LlamaServer(self._model, *_OPTIONS, port=self.ports[number])

    def kill(self, number: int) -> None:
        self._tokens_before[number] += self._tokens(number)
        self._servers.pop(number).kill()

    def answers(self) -> list[float]:
        """Number of answers that each engine has given, computed from the tokens that it has written."""
        tokens = [
            before + (self._tokens(number) if number in self._servers else 0)
            for number, before in enumerate(self._tokens_before)
        ]
        return [count / ANSWER_TOKENS for count in tokens]

    def stop(self) -> None:
        for server in self._servers.values():
            server.stop()

    def _tokens(self, number: int) -> float:
        return self._servers[number].metrics()["llamacpp:tokens_predicted_total"]


@contextlib.contextmanager
def running_engines(model: Path) -> Iterator[Engines]:
    """Start new processes, whose caches are empty."""
    engines = Engines(model, ENGINES)
    try:
        for number in range(ENGINES):
            engines.start(number)
        yield engines
    finally:
        engines.stop()
