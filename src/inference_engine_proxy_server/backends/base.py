"""What every engine can tell about itself, and the class that an engine is written as."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, NamedTuple

import msgspec

__all__ = [
    "BackendState",
    "BaseBackend",
    "Get",
    "ModelEntry",
    "ModelNames",
    "Reply",
    "Thresholds",
    "UnreadableState",
    "contexts_told",
    "non_negative",
    "parse_models",
]

ModelEntry = Mapping[str, Any]
"""One object of the ``data`` array of ``GET /v1/models``, as the engine wrote it; its ``id`` is a string."""


class Reply(NamedTuple):
    """A backend's whole answer to one GET."""

    status: int
    body: bytes


Get = Callable[[str], Awaitable[Reply]]
"""Asks one backend for one path (``"/metrics"``), within a deadline and a size bound of its own.

Raises ``TimeoutError`` when the deadline passes, ``OSError`` when there is no connection or it breaks, and
:class:`UnreadableState` when the answer is not HTTP or too large.
"""


class UnreadableState(Exception):
    """A backend told its state in a form that its engine does not use."""


class ModelNames(Enum):
    """What an engine does with a request whose ``model`` it does not list."""

    STRICT = "strict"
    """It refuses it: vLLM answers 404."""
    ANY = "any"
    """It answers with the one model it has: llama.cpp with a single model."""
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Polled numbers above which a backend counts as busy: it gets no new requests, but has not failed."""

    requests_processing: float
    requests_waiting: float


@dataclass(frozen=True, slots=True)
class BackendState:
    """The last thing a backend told us, as its engine understands it.

    Attributes:
        ready: takes new requests now.
        live: works, also when it is too busy for more (then ``ready`` is false). Not live: starting, asleep.
        starting: not live yet, and no failure: it loads its model.
        reason: why it is not ready, for people; empty when it is.
        requests_processing: requests it is generating for; ``None``: it did not say.
        requests_waiting: requests in its own queue; ``None``: it did not say.
        capacity: requests it can work on at a time; ``None``: it did not say, or there is no telling.
        context_use: the share of its memory for contexts that requests in process use; ``None``: it did not say.
        memory_tokens: tokens that fit into that memory, whether a request uses them or they are kept for one that
            begins alike; ``None``: it did not say.
        progress: a number that changes while it works on anything, also while a long prompt is read; ``None``: it
            did not say. That it stands still while there is work means that the engine is stuck.
        models: what it serves; ``None``: it did not say this time, so what it said before still holds, and so
            do the ``model_names`` that came with it.
        model_names: what it does with a name that ``models`` lacks.
        contexts: tokens that a prompt and its answer may have, by the ids of those ``models`` that tell it.
        bounds_max_tokens: it refuses a request that would take more tokens for its answer than a whole context has.
        figures: further numbers worth showing, by the engine's own names.
    """

    ready: bool
    live: bool = True
    starting: bool = False
    reason: str = ""
    requests_processing: float | None = None
    requests_waiting: float | None = None
    capacity: int | None = None
    context_use: float | None = None
    memory_tokens: int | None = None
    progress: float | None = None
    models: tuple[ModelEntry, ...] | None = None
    model_names: ModelNames = ModelNames.UNKNOWN
    contexts: Mapping[str, int] = field(default_factory=dict)
    bounds_max_tokens: bool = False
    figures: Mapping[str, float] = field(default_factory=dict)

    def load_and_ready(self) -> tuple[float, bool]:
        """What :meth:`BaseBackend.fetch_metrics` promises, for an engine that fills the whole state.

        Raises:
            UnreadableState: it is ready, but told no load; 0 would make it look idle.
        """
        told = [count for count in (self.requests_processing, self.requests_waiting) if count is not None]
        if self.ready and not told:
            raise UnreadableState("it told no load")
        return sum(told, 0.0), self.ready


class BaseBackend(ABC):
    """One backend, seen by an engine that knows how to ask it for its state.

    A subclass that implements :meth:`fetch_metrics` is a complete engine. Override :meth:`fetch_state` to
    tell more. No method may keep a connection or a task: :attr:`get` does all the I/O.

    Attributes:
        providers: the ``owned_by`` values of ``GET /v1/models`` that mean this engine.
        reuses_connections: whether requests may share kept-alive connections to this engine.
    """

    providers: ClassVar[tuple[str, ...]] = ()
    reuses_connections: ClassVar[bool] = True

    def __init__(self, url: str, get: Get, thresholds: Thresholds) -> None:
        """Remember how to ask.

        Args:
            url: base URL without a trailing slash.
            get: asks this backend for a path.
            thresholds: when an engine that polls these numbers should call itself busy.
        """
        self.url = url
        self.get = get
        self.thresholds = thresholds

    @abstractmethod
    async def fetch_metrics(self) -> tuple[float, bool]:
        """Current load (requests processing and waiting), and whether the backend takes new requests.

        Raises:
            UnreadableState, OSError, TimeoutError: as :data:`Get`; the backend then told nothing.
        """

    async def fetch_state(self) -> BackendState:
        """Everything the engine can tell. Raises as :meth:`fetch_metrics` does."""
        load, ready = await self.fetch_metrics()
        return BackendState(
            ready=ready,
            reason="" if ready else "the engine says it is not ready",
            requests_processing=non_negative(load),
            models=await self.fetch_models(),
        )

    async def fetch_models(self) -> tuple[ModelEntry, ...] | None:
        """The entries of ``GET /v1/models``; ``None`` when the backend does not tell them now."""
        body = await self.fetch_body("/v1/models")
        try:
            return None if body is None else parse_models(body)
        except UnreadableState:
            return None

    async def fetch_body(self, path: str) -> bytes | None:
        """The body of a 200 answer to ``path``; ``None`` when the backend does not tell it now.

        For what may be missing without harm: a page that is off, slow or broken says nothing about health.
        """
        try:
            reply = await self.get(path)
        except (OSError, UnreadableState):  # TimeoutError is an OSError
            return None
        return reply.body if reply.status == 200 else None


def non_negative(value: float | None) -> float | None:
    """``value`` if it can be a count or a share; ``None`` for NaN, infinity and negative numbers."""
    return value if value is not None and math.isfinite(value) and value >= 0 else None


def contexts_told(models: Iterable[ModelEntry] | None, tell: Callable[[ModelEntry], object]) -> dict[str, int]:
    """What ``tell`` finds in the entries, by their ids, where it can be a context's length in tokens."""
    told = ((entry["id"], tell(entry)) for entry in models or ())
    return {name: length for name, length in told if type(length) is int and length > 0}


def parse_models(body: bytes) -> tuple[ModelEntry, ...]:
    """The entries of an OpenAI models list that have an id.

    Raises:
        UnreadableState: not a JSON object with a ``data`` array of objects.
    """
    try:
        listing = msgspec.json.decode(body, type=_ModelsList)
    except (ValueError, RecursionError) as error:  # not only msgspec's: bytes that are not UTF-8, endless nesting
        raise UnreadableState(f"GET /v1/models: {error}") from error
    return tuple(entry for entry in listing.data if isinstance(entry.get("id"), str))


class _ModelsList(msgspec.Struct):
    data: list[dict[str, Any]]
