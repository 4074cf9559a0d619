"""Real llama.cpp servers with empty caches, each on a core of its own, which can be killed and restarted."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from proxies.proxy import free_ports
from support.llama_server import LlamaServer
from support.tiny_gguf import ModelShape, write_tiny_gguf
from warm_prefixes.plan import ANSWER_TOKENS, GROUPS, MODEL, SLOTS

__all__ = ["Engines", "engine_cores", "running_engines", "write_model"]

# Reading 2,000 tokens takes about 1 s on one core of 2026, writing a token 3 ms.
_SHAPE = ModelShape(embedding=256, layers=4, context=4096)
# Each idle connection that a proxy keeps occupies a llama.cpp thread; the default for two slots is six threads.
_OPTIONS = ("--slots", str(SLOTS), "--context", "6144")
_COMMON = ("--threads", "1", "--http-threads", "64", "--alias", MODEL)


def write_model(folder: Path) -> Path:
    return write_tiny_gguf(folder / "model.gguf", _SHAPE)


def engine_cores(most: int | None = None) -> tuple[int, ...]:
    """The cores that get an engine each: those of this process, ``most`` of them.

    Two engines on one core would delay each other, and a scheduler that moves them would add noise.
    """
    return tuple(sorted(os.sched_getaffinity(0)))[:most]


class Engines:
    """Engines by number, each pinned to a core; each keeps its port across restarts.

    Args:
        options: of ``tests/support/llama_program.py``.
    """

    def __init__(self, model: Path, cores: Sequence[int], options: Sequence[str]) -> None:
        self.ports = free_ports(len(cores))
        self._cores = cores
        self._options = (*_COMMON, *options)
        self._model = model
        self._servers: dict[int, LlamaServer] = {}
        self._tokens_before = [0.0] * len(cores)  # written by servers that have been killed

    def come_back(self, number: int) -> None:
        """Start an engine with an empty cache, and wait until it answers."""
        self._servers[number] = LlamaServer(
            self._model, *self._options, "--core", str(self._cores[number]), port=self.ports[number]
        )

    def leave(self, number: int) -> None:
        """Kill an engine."""
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
def running_engines(
    model: Path, cores: Sequence[int] | None = None, options: Sequence[str] = _OPTIONS
) -> Iterator[Engines]:
    """Start new processes, whose caches are empty, on ``cores``; by default one for each group of conversations."""
    engines = Engines(model, engine_cores(GROUPS) if cores is None else cores, options)
    try:
        for number in range(len(engines.ports)):
            engines.come_back(number)
        yield engines
    finally:
        engines.stop()
