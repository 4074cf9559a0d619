"""What an engine can report about a backend, and the class that every engine extends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import ClassVar

from inference_engine_proxy_server.backends.begun_answers import BegunAnswers
from inference_engine_proxy_server.backends.fingerprint import Fingerprint
from inference_engine_proxy_server.backends.probe import Probe
from inference_engine_proxy_server.backends.replies import (
    Get,
    ModelEntry,
    Reply,
    UnreadableState,
    decoded,
    parse_models,
)

__all__ = [
    "Api",
    "BackendState",
    "BaseBackend",
    "Get",
    "ModelEntry",
    "ModelNames",
    "ModelReport",
    "ModelStatus",
    "Probe",
    "Reply",
    "Thresholds",
    "UnreadableState",
    "context_lengths",
    "decoded",
    "non_negative",
    "parse_models",
]


_MOST = 1e15  # requests or tokens; sums of such numbers are finite


class Api(Enum):
    """An API that asks for an answer of a model."""

    COMPLETIONS = "completions"
    """OpenAI's chat and text completions."""
    MESSAGES = "messages"
    """Anthropic's messages."""
    RESPONSES = "responses"
    """OpenAI's responses."""


class ModelNames(Enum):
    """How an engine treats a request whose ``model`` it does not list."""

    STRICT = "strict"
    """It rejects the request: vLLM answers 404."""
    ANY = "any"
    """It answers with the one model it has: llama.cpp with a single model."""
    UNKNOWN = "unknown"


class ModelStatus(IntEnum):
    """How much an engine must do before it can serve a model. Lower values are better."""

    AWAKE = 0
    """Nothing."""
    COLD = 1
    """Load the model: the engine sleeps, or a router has unloaded the model."""
    FAILED = 2
    """Load the model, which failed the last time."""


@dataclass(frozen=True, slots=True)
class ModelReport:
    """One model of an engine that loads and unloads its models; ``None`` means not reported.

    Attributes:
        status: in the engine's own word, such as ``loaded`` or ``sleeping``.
        in_memory: it takes up one of the engine's places for models, even if it still loads or sleeps.
        is_ready: it serves requests without being loaded or woken first.
        capacity: requests for it that the engine can process at a time.
        requests_processing: requests for it that the engine is generating for.
        requests_waiting: requests for it in the engine's own queue.
    """

    status: str
    in_memory: bool
    is_ready: bool
    capacity: int | None = None
    requests_processing: float | None = None
    requests_waiting: float | None = None


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Reported counts above which a backend is busy: it gets no new requests, but has not failed.

    Attributes:
        requests_processing: requests in process.
        requests_waiting: requests in its own queue.
        grows_with_slots: the operator has not set ``requests_processing``, so it is at least the number of slots.
    """

    requests_processing: float
    requests_waiting: float
    grows_with_slots: bool = False


@dataclass(frozen=True, slots=True)
class BackendState:
    """The last state that a backend reported, as its engine interprets it; ``None`` means not reported.

    Attributes:
        ready: accepts new requests now.
        live: works, even if it is too busy to be ready. Not live: starting, or asleep.
        starting: whether it is loading its model, which is not a failure.
        reason: for people, why it is not ready; empty when it is.
        requests_processing: requests that it is generating for.
        requests_waiting: requests in its own queue.
        capacity: requests that it can process at a time.
        context_use: share of its context memory that current requests use, 0 to 1.
        memory_tokens: tokens that fit into that memory, for current requests and for reusable prefixes together.
        progress: a number that changes while it works on anything, including a long prompt. A constant value while
            there is work means that the engine is stuck.
        models: the models that it serves; when ``None``, the previously reported models and ``model_names`` still hold.
        model_names: how it treats names that ``models`` lacks.
        statuses: by the ids of the ``models`` that are not awake.
        model_reports: by the ids of the ``models`` of an engine that loads and unloads them; empty for other engines.
        most_models: models that such an engine holds in memory at most; infinite if requests never make it unload one.
        contexts: tokens that a prompt and its answer may have together, by the ids of the ``models`` that report it.
        continued_apis: the APIs in which it continues an answer that begins with a given text.
        begun_answers: what its prompts have of such an answer, if that is a message.
        shows_replies_in_streams: its replies to completions can be assembled from streams (``resume/assembly.py``).
        bounds_max_tokens: it rejects a request whose answer limit alone exceeds the whole context.
        streams_usage_on_request: its streams of (chat) completions report the tokens used only if the request has
            ``stream_options.include_usage``; then in an event of their own that takes nothing from the others.
        figures: further numbers worth showing, by the engine's own names.
        engine_version: as the engine names it.
        fingerprints: what tells the replicas of a model apart, by the ids of the ``models`` that have one.
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
    statuses: Mapping[str, ModelStatus] = field(default_factory=dict)
    model_reports: Mapping[str, ModelReport] = field(default_factory=dict)
    most_models: float | None = None
    contexts: Mapping[str, int] = field(default_factory=dict)
    continued_apis: frozenset[Api] = frozenset()
    begun_answers: BegunAnswers = BegunAnswers.KEPT
    shows_replies_in_streams: bool = False
    bounds_max_tokens: bool = False
    streams_usage_on_request: bool = False
    figures: Mapping[str, float] = field(default_factory=dict)
    engine_version: str | None = None
    fingerprints: Mapping[str, Fingerprint] = field(default_factory=dict)


class BaseBackend:
    """One backend, as its engine sees it.

    A subclass implements :meth:`fetch_metrics`, or the richer :meth:`fetch_state`; each has a default in terms of the
    other one. Methods keep no connections and no tasks: :attr:`get` does all I/O.

    Attributes:
        providers: names of the engine: those that the fleet file may use, and the ``owned_by`` values of
            ``GET /v1/models`` that identify it. The first one is shown to operators.
        reuses_connections: whether requests to the engine may share kept-alive connections.
        health_path: asked when none of the backend's requests makes progress; any answer shows that it is not frozen.

    Raises:
        TypeError: the subclass implements neither method.
    """

    providers: ClassVar[tuple[str, ...]] = ()
    reuses_connections: ClassVar[bool] = True
    health_path: ClassVar[str] = "/health"

    def __init__(self, url: str, get: Get, thresholds: Thresholds) -> None:
        """Store what the methods need.

        Args:
            url: base URL without a trailing slash.
            get: asks this backend.
            thresholds: when an engine that polls these counts should report itself busy.
        """
        if not self.is_complete():
            raise TypeError(f"{type(self).__name__} must implement fetch_metrics or fetch_state")
        self.url = url
        self.get = get
        self.thresholds = thresholds

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    @classmethod
    def is_complete(cls) -> bool:
        """Whether the class implements one of the two methods."""
        return cls.fetch_metrics is not BaseBackend.fetch_metrics or cls.fetch_state is not BaseBackend.fetch_state

    @classmethod
    async def recognizes(cls, probe: Probe) -> bool:
        """Whether the backend that ``probe`` asks is certainly of this engine.

        Asked once for each start of a backend, and only if no ``owned_by`` identifies its engine. One or two questions
        must be enough, and no other server may give the answers that are accepted. Raises nothing.
        """
        del probe
        return False

    async def fetch_metrics(self) -> tuple[float, bool]:
        """The current load (requests processing and waiting), and whether the backend accepts new requests.

        Raises:
            UnreadableState: the reply is not understood; or, by default, the state is ready without any load, and 0
                would make the backend look idle.
            OSError, TimeoutError: as :class:`Get`.
        """
        state = await self.fetch_state()
        counts = [count for count in (state.requests_processing, state.requests_waiting) if count is not None]
        if state.ready and not counts:
            raise UnreadableState("it reported no load")
        return sum(counts, 0.0), state.ready

    async def fetch_state(self) -> BackendState:
        """Everything that the engine reports. Raises as :meth:`fetch_metrics`."""
        load, ready = await self.fetch_metrics()
        return BackendState(
            ready=ready,
            reason="" if ready else "the engine reports that it is not ready",
            requests_processing=non_negative(load),
            models=await self.fetch_models(),
        )

    async def fetch_models(self) -> tuple[ModelEntry, ...] | None:
        """The entries of ``GET /v1/models``; ``None`` when the backend does not return them now."""
        body = await self.fetch_body("/v1/models")
        try:
            return None if body is None else parse_models(body)
        except UnreadableState:
            return None

    async def fetch_body(self, path: str) -> bytes | None:
        """The body of a reply with status 200; ``None`` without one.

        For optional pages: a page that is disabled, slow or broken says nothing about the backend's health.
        """
        try:
            reply = await self.get(path)
        except (OSError, UnreadableState):  # TimeoutError is an OSError
            return None
        return reply.body if reply.status == 200 else None


def non_negative(value: float | None) -> float | None:
    """``value`` if it can be a count or a share; ``None`` for NaN, negative numbers, and those beyond 10^15."""
    return value if value is not None and 0 <= value <= _MOST else None


def context_lengths(models: Iterable[ModelEntry] | None, length_of: Callable[[ModelEntry], object]) -> dict[str, int]:
    """Context lengths in tokens, by model id.

    Args:
        models: as reported.
        length_of: reads the length from an entry; a result that is not a positive integer is left out.
    """
    reported = ((entry["id"], length_of(entry)) for entry in models or ())
    return {name: length for name, length in reported if type(length) is int and length > 0}
