"""One backend with what is known of it, and a request's place on it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Protocol

from inference_engine_proxy_server.backends.base import BackendState, ModelEntry, ModelNames
from inference_engine_proxy_server.backends.reply_facts import ReplyFacts
from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.fleet.health_tracker import Health, HealthTracker
from inference_engine_proxy_server.requests.conversation import key_of
from inference_engine_proxy_server.routing.balancer import LAST_CHOICE
from inference_engine_proxy_server.routing.decisions import Decision
from inference_engine_proxy_server.routing.expected_time.pending_work import PendingWork
from inference_engine_proxy_server.wire.backend_connections import BackendConnections

__all__ = ["Backend", "Learning", "Lease"]


class Seats(Protocol):
    """Where some backends are chosen from, each by its position."""

    @property
    def ranks(self) -> list[float]:
        """What the load of each weighs."""

    def note_cost(self, at: int, cost: float) -> None:
        """From now on one request weighs ``cost`` on the backend at this position."""


class Learning(Protocol):
    """Is told what comes of a request, and learns from it."""

    def begin(self) -> None:
        """The first data of its answer is there."""

    def wants_facts(self) -> bool:
        """Whether what its reply says is worth reading."""

    def complete(self, facts: ReplyFacts | None) -> None:
        """Its answer is complete, and ended with these facts; ``None``: nobody has read them."""

    def close(self) -> None:
        """Nothing more comes of it."""


class Backend:
    """One backend: what it is told to be, what it told us last, and what of ours it has.

    Args:
        config: what is said of it.
        connections: how requests get there.
        health: weighs the evidence about it.

    Attributes:
        url: its base URL.
        reply_field: the ``x-backend`` line of the replies it gives.
        credentials: header lines that it knows us by; ``None``: it asks for no key of ours.
        told_at: when it last told its state, in seconds since the epoch; 0 before the first time.
        is_draining: it gets no new requests, by an operator's wish.
        takes_requests: it is in rotation.
        models: what it serves, its configuration going before what it tells; kept while it is down.
        model_ids: their names, aliases included.
        model_names: what it does with other names.
        leases: requests of ours that it has now.
        load: those, and what others have sent it as far as we know.
        limit: the load at which it is full.
        cost: what one request there weighs; 1 for a backend of weight 1 in good health, more for a smaller share.
        is_live: it works, also when it is too busy for more, or not trusted with more.
        is_last_choice: only for when no other is free.
        seats: where it is chosen from, each with its position there.
        trial: the request that tries whether it works again; ``None``: none has been sent.
        number: by which the index of prefixes knows it; -1: it has none.
        place_key: 64 bits of its URL, the same in all replicas.
        work: what of our prompts it has to do, as far as a policy looks at that.
        places: how many requests it works on at a time; infinite: it does not tell.
        memory_tokens: what its memory for contexts holds; ``None``: it does not tell.
        contexts: tokens that a prompt and its answer may have, by the names of the models that tell it.
        bounds_max_tokens: an answer may not be asked to be longer than that.
        recheck: set when it should be asked at once instead of at the next interval.
    """

    __slots__ = (
        "_figure_at", "_foreign", "_handicap", "_only_context", "bounds_max_tokens", "config", "connections",
        "contexts", "cost", "credentials", "health", "is_draining", "is_last_choice", "is_live", "leases", "limit",
        "load", "memory_tokens", "model_ids", "model_names", "models", "number", "place_key", "places", "recheck",
        "reply_field", "seats", "takes_requests", "told_at", "trial", "url", "work",
    )  # fmt: skip

    def __init__(self, config: BackendConfig, connections: BackendConnections, health: HealthTracker) -> None:
        self.url = config.url
        self.reply_field = f"x-backend: {config.url}\r\n".encode()
        self.connections = connections
        self.health = health
        self.told_at = 0.0
        self.is_draining = False
        self.takes_requests = False
        self.models: tuple[ModelEntry, ...] = ()
        self.model_ids: frozenset[str] = frozenset()
        self.model_names = ModelNames.UNKNOWN
        self.contexts: dict[str, int] = {}
        self.bounds_max_tokens = False
        self.leases = 0
        self.load = 0.0
        self.limit = math.inf
        self.places = math.inf
        self.memory_tokens: int | None = None
        self.number = -1
        self.place_key = key_of(config.url.encode())
        self.work = PendingWork()
        self.cost = 1.0
        self.is_live = False
        self.is_last_choice = False
        self.seats: list[tuple[Seats, int]] = []
        self.trial: Lease | None = None
        self.recheck = asyncio.Event()
        self._handicap = 0.0
        self._only_context: int | None = None  # of who has but one model
        self._foreign = 0.0  # the part of the load that is not ours
        self._figure_at = -math.inf  # when it last told its load; -inf: not since it came up
        self.credentials: bytes | None
        self.configure(config)

    def configure(self, config: BackendConfig) -> None:
        """Take over what is said of it now; what depends on what it tells follows when it next tells it."""
        self.config = config
        key = config.api_key
        self.credentials = None if key is None else f"authorization: Bearer {key.get_secret_value()}\r\n".encode()

    @property
    def foreign(self) -> float:
        """Requests of others, as far as we know."""
        return self._foreign

    @property
    def all_leases(self) -> int:
        """Requests that it has now of this proxy, of all its processes."""
        return self.leases

    def take_over_models(self, told: BackendState) -> None:
        """Remember what ``told`` says that it serves; what its configuration says goes first."""
        if told.models is None:
            return
        self.models = told.models
        self.model_ids = frozenset(name for entry in told.models for name in _names(entry))
        self.model_names = told.model_names
        self.contexts = {
            name: told.contexts[entry["id"]]
            for entry in told.models
            if entry["id"] in told.contexts
            for name in _names(entry)
        }
        self.bounds_max_tokens = told.bounds_max_tokens
        self._only_context = told.contexts.get(told.models[0]["id"]) if len(told.models) == 1 else None
        stated = self.config.models
        if stated is not None:
            self.models = tuple({**_entry_of(told.models, name), "id": name} for name in stated)
            self.model_ids = frozenset(stated)
            self.model_names = ModelNames.STRICT

    def context_of(self, model: str | None) -> int | None:
        """Tokens that a prompt and its answer may have, for whoever asks for this name; ``None``: it does not tell."""
        return self._only_context if model is None else self.contexts.get(model, self._only_context)

    def take_over_load(self, told: BackendState, *, own_at_poll: int, allowance: int, now: float) -> None:
        """Remember how loaded ``told`` says it is, ``own_at_poll`` of it being ours, and how much it can take."""
        if told.requests_processing is not None:
            polled = told.requests_processing + (told.requests_waiting or 0.0)
            self._foreign = max(0.0, polled - own_at_poll)
            self._figure_at = now
        capacity = self.config.capacity or told.capacity
        self.places = math.inf if capacity is None else capacity
        self.limit = self.places + allowance
        self.memory_tokens = told.memory_tokens or self.memory_tokens  # a page that fails does not empty it
        self.work.take_over_memory(told.context_use or 0.0, self.load)

    def review(self, now: float, evidence_seconds: float) -> None:
        """Bring everything that follows from its health and from the age of its figures up to date."""
        health = self.health
        health.review(now, self.connections.activity())
        self.is_live = health.state in (Health.UP, Health.BUSY, Health.SUSPECT) or health.is_in_question
        if not self.is_live:
            self._figure_at = -math.inf
        figure_is_old = self._figure_at < now - evidence_seconds
        if figure_is_old:
            self._foreign = 0.0
        self.load = self._foreign + self.leases
        self.cost = 1 / (self.config.weight * health.share(now))
        self.is_last_choice = health.is_last_choice or (figure_is_old and self._figure_at > -math.inf)
        is_being_tried = health.on_trial and self.trial is not None and self.trial.is_open
        self.takes_requests = health.takes_requests and not self.is_draining and not is_being_tried
        self._handicap = LAST_CHOICE if self.is_last_choice else 0.0
        for seats, at in self.seats:
            seats.note_cost(at, self.cost)
        self.rerank()

    def weighed(self) -> float:
        """What its load weighs: who has the lowest of all goes first."""
        return self.load * self.cost + self._handicap

    def take_seat(self, seats: Seats, at: int) -> None:
        """Note its rank and its cost there, at this position, from now on; until its ``seats`` are cleared."""
        self.seats.append((seats, at))
        self.rerank()

    def rerank(self) -> None:
        """Note its rank wherever it is chosen from: with every request that comes or goes."""
        load = self.load
        rank = load * self.cost + self._handicap if load < self.limit and self.takes_requests else math.inf
        for seats, at in self.seats:
            seats.ranks[at] = rank


class Lease:
    """One request's place on one backend, from the pick until its last byte. Closing it twice does no harm.

    Args:
        backend: the one that was picked.
        freed: told when the place is free again.

    Attributes:
        commission: what policies learn from this request; ``None``: they learn nothing.
        decision: why it is there; only where the pool keeps decisions.
    """

    __slots__ = ("_freed", "backend", "commission", "decision", "is_open")

    decision: Decision

    def __init__(self, backend: Backend, freed: Callable[[], None]) -> None:
        self.backend = backend
        self._freed = freed
        self.commission: Learning | None = None
        self.is_open = True
        backend.leases += 1
        backend.load += 1
        backend.rerank()

    def close(self) -> None:
        """Give the place back."""
        if self.is_open:
            self.is_open = False
            if self.commission is not None:
                self.commission.close()
            backend = self.backend
            backend.leases -= 1
            backend.load -= 1
            backend.rerank()
            self._freed()


def _names(entry: ModelEntry) -> tuple[str, ...]:
    """The names that a model answers to; llama.cpp lists its aliases beside its id."""
    aliases = entry.get("aliases")
    return (entry["id"], *(alias for alias in aliases if isinstance(alias, str))) if aliases else (entry["id"],)


def _entry_of(models: tuple[ModelEntry, ...], name: str) -> ModelEntry:
    return next((entry for entry in models if name in _names(entry)), {"object": "model", "owned_by": "unknown"})
