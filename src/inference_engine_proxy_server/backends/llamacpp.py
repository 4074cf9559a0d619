"""llama.cpp's ``llama-server``, with one model or as a router over several.

Sources: llama.cpp ``tools/server/README.md``; measured on llama.cpp builds 11434 and 11549.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, ClassVar

import msgspec

from inference_engine_proxy_server.backends.base import (
    Api,
    BackendState,
    BaseBackend,
    Get,
    ModelEntry,
    ModelNames,
    ModelStatus,
    Probe,
    Reply,
    Thresholds,
    UnreadableState,
    context_lengths,
    non_negative,
)
from inference_engine_proxy_server.backends.fingerprint import Fingerprint, weights_of
from inference_engine_proxy_server.backends.llamacpp_fingerprint import LlamaCppFingerprints
from inference_engine_proxy_server.backends.llamacpp_router import fetch_model_reports, is_router, status_value
from inference_engine_proxy_server.backends.prometheus_text import sum_samples
from inference_engine_proxy_server.backends.replies import decoded

__all__ = ["LlamaCppBackend"]

logger = logging.getLogger(__name__)

_PROCESSING = "llamacpp:requests_processing"
_DEFERRED = "llamacpp:requests_deferred"
# Grows during every request, embeddings included, while the token counters are updated only at the end of the prompt or
# of the whole reply (measured on build 11549). It counts batches: by default 2048 prompt tokens make one batch, which
# takes a CPU many seconds. By its help text, images are not counted.
_DECODED = "llamacpp:n_decode_total"
_ALL_APIS = frozenset(Api)
_COLD = ("unloaded", "loading", "sleeping", "downloading", "downloaded")  # values of a router's status
# Whether the server continues a trailing assistant message shows in the prompt that it would read.
_BEGUN_ANSWER = b'{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"begun"}]}'
_SHOWN = (
    "llamacpp:prompt_tokens_total",
    "llamacpp:prompt_tokens_cached_total",
    "llamacpp:tokens_predicted_total",
)


class LlamaCppBackend(BaseBackend):
    """Health from ``/health``, load from ``/metrics``, models from ``/v1/models``, the number of slots from ``/props``.

    ``/apply-template`` shows once whether it continues a trailing assistant message of ``/v1/messages``.
    A router reports load and slots of each model in memory, and none of its own (:mod:`.llamacpp_router`).

    Only ``/health`` can make it not ready, apart from the thresholds. ``/metrics`` may be disabled (501 without
    ``--metrics``), or blocked for seconds by a long prefill (not in build 11549). Load and progress are then unknown,
    which means neither failed nor idle.

    It does not report how many tokens its slots and its prompt cache in host memory hold: the cache limit is in bytes,
    and the bytes of one token are reported nowhere.

    Its streams report tokens in any case, as ``timings``. With ``stream_options.include_usage``, the timings move from
    the last event of the answer to the additional one (measured on build 11549), so it is not asked for that.
    """

    providers: ClassVar[tuple[str, ...]] = ("llamacpp",)
    # An idle kept-alive connection occupies one of its few HTTP threads for 5 s. Measured on build 11549: 16 idle
    # connections delayed the next answer by 10 s, while 100 connections that were closed at once took 6 ms.
    reuses_connections: ClassVar[bool] = False

    @classmethod
    async def recognizes(cls, probe: Probe) -> bool:
        """By ``Server: llama.cpp``, if it does not show its models without a key."""
        reply = await probe.get("/v1/models")
        return reply is not None and reply.status == 401 and reply.field("server") == "llama.cpp"

    def __init__(self, url: str, get: Get, thresholds: Thresholds) -> None:
        """As :class:`BaseBackend`."""
        super().__init__(url, get, thresholds)
        self._continues_messages: bool | None = None  # unknown until the server, which must be awake, was asked
        self._progress = 0.0
        self._fingerprints = LlamaCppFingerprints(get)

    async def fetch_state(self) -> BackendState:
        """Everything it reports.

        Not live while it loads its model or ``/health`` is not 200; live but not ready above the thresholds.
        ``capacity``: its slots. ``progress``: batches decoded since it started; ``None`` without ``/metrics``.
        ``contexts``: of one slot. ``figures``: token counters since it started.

        Raises:
            UnreadableState, OSError, TimeoutError: as :class:`Get`, for ``/health``.
        """
        health = await self._fetch_health()
        if health.status != 200:
            return _not_live(health)
        models = await self.fetch_models()
        # Polled every time, because a process with other slots may have taken over the address. It costs the engine
        # 0.2 ms (build 11549), less than /metrics. Unlike /slots it cannot be disabled, and it does not wake a sleeping
        # server (llama.cpp tools/server/tests/unit/test_sleep.py).
        props_page = await self.fetch_body("/props") or b""
        props = _props(props_page)
        if models is not None and is_router(models):
            return await self._state_of_router(models, props)
        slots = props.total_slots
        page = await self.fetch_body("/metrics")  # last: only it waits for the engine's current step
        sums = sum_samples(page or b"", (_PROCESSING, _DEFERRED, _DECODED, *_SHOWN))
        processing = non_negative(sums.get(_PROCESSING))
        deferred = non_negative(sums.get(_DEFERRED))
        progress = non_negative(sums.get(_DECODED))
        reason = self._why_busy(processing, deferred, slots)
        return BackendState(
            ready=not reason,
            reason=reason,
            requests_processing=processing,
            requests_waiting=deferred,
            capacity=slots,
            progress=progress,
            models=models,
            model_names=_model_names(models),
            continued_apis=await self._continued_apis(models, progress, is_sleeping=props.is_sleeping),
            shows_replies_in_streams=_shows_replies_in_streams(props_page),
            statuses=_statuses(models, is_sleeping=props.is_sleeping),
            contexts=context_lengths(models, _context_tokens),
            figures=_figures(sums),
            engine_version=props.build_info,
            fingerprints=await self._fingerprints.of(props_page, models, is_sleeping=props.is_sleeping),
        )

    async def _fetch_health(self) -> Reply:
        status = 0
        try:
            health = await self.get("/health")
            status = health.status
        finally:
            if status != 200:
                self._continues_messages = None  # another process may take over the address
        return health

    async def _continued_apis(
        self, models: tuple[ModelEntry, ...] | None, progress: float | None, *, is_sleeping: bool
    ) -> frozenset[Api]:
        """Chat completions and responses continue a message on request, messages unless ``--no-prefill-assistant``."""
        if progress is not None:
            if progress < self._progress:
                self._continues_messages = None  # another process
            self._progress = progress
        if self._continues_messages is None and not is_sleeping and _model_names(models) is ModelNames.ANY:
            # Once, because the question counts as use of the server, which keeps it from sleeping. A router has many
            # servers, and would load a model to answer.
            self._continues_messages = await self._continues_begun_answer()
        return _ALL_APIS if self._continues_messages else _ALL_APIS - {Api.MESSAGES}

    async def _continues_begun_answer(self) -> bool | None:
        """Whether a prompt ends with the text of a trailing assistant message; ``None`` without an answer."""
        try:
            reply = await self.get("/apply-template", _BEGUN_ANSWER)
        except (OSError, UnreadableState):
            return None
        try:
            return reply.status == 200 and msgspec.json.decode(reply.body, type=_Prompt).prompt.endswith("begun")
        except (ValueError, RecursionError):
            return False

    async def _state_of_router(self, models: tuple[ModelEntry, ...], props: _Props) -> BackendState:
        return BackendState(
            ready=True,
            models=models,
            model_names=_model_names(models),
            continued_apis=_ALL_APIS - {Api.MESSAGES},
            statuses=_statuses(models, is_sleeping=False),
            model_reports=await fetch_model_reports(models, self.fetch_body),
            most_models=props.most_models,
            contexts=context_lengths(models, _context_tokens),
            engine_version=props.build_info,
            # Only of models in memory, and without questions: they would keep a model from being unloaded.
            fingerprints={entry["id"]: Fingerprint(weights_of(entry)) for entry in models if "meta" in entry},
        )

    def _why_busy(self, processing: float | None, deferred: float | None, slots: int | None) -> str:
        limit = self.thresholds.requests_processing
        if slots is not None and slots > limit:
            if self.thresholds.grows_with_slots:
                limit = slots
            else:
                _warn_of_idle_slots(self.url, limit, slots)
        if processing is not None and processing > limit:
            return f"busy: {processing:g} requests processing, limit {limit:g}"
        if deferred is not None and deferred > self.thresholds.requests_waiting:
            return f"busy: {deferred:g} requests deferred, limit {self.thresholds.requests_waiting:g}"
        return ""


@lru_cache(maxsize=1024)  # one warning for each backend
def _warn_of_idle_slots(url: str, limit: float, slots: int) -> None:
    logger.warning(
        "backend %s has %d slots, but is busy above %g requests in process; raise or remove this limit to use all "
        "slots (MAX_ALLOWED_REQUEST_QUEUE, or max_requests_processing in the fleet file)",
        url,
        slots,
        limit,
    )


class _Prompt(msgspec.Struct):
    prompt: str


class _Props(msgspec.Struct):
    total_slots: Annotated[int, msgspec.Meta(ge=1)] | None = None  # a router's /props lacks it
    is_sleeping: bool = False
    max_instances: Annotated[int, msgspec.Meta(ge=0)] | None = None  # a router's; 0: no limit
    models_autoload: bool = True  # a router's: requests make it load models
    build_info: str | None = None  # such as b11549-0badc0de

    @property
    def most_models(self) -> float | None:
        """See :class:`BackendState`."""
        if not self.models_autoload:
            return math.inf
        return math.inf if self.max_instances == 0 else self.max_instances


def _props(page: bytes) -> _Props:
    return decoded(page, _Props) or _Props()


class _AnswerSettings(msgspec.Struct):
    reasoning_format: str


class _SlotSettings(msgspec.Struct):
    params: _AnswerSettings  # a router has null


class _Build(msgspec.Struct):
    """The part of ``/props`` that shows how a build writes its replies."""

    chat_template_caps: dict[str, msgspec.Raw]
    default_generation_settings: _SlotSettings


def _shows_replies_in_streams(page: bytes) -> bool:
    """Whether this is a build whose replies are known to equal those that are assembled from its streams.

    Builds 11434 and 11549 report the capability ``supports_preserve_reasoning``. Older builds do not; some of them
    write ``null`` as the content of tool calls. A build's number is no help, because it is 0 in many packages. The
    format ``deepseek-legacy`` is documented to leave reasoning in the text of streams only.
    """
    build = decoded(page, _Build)
    if build is None or "supports_preserve_reasoning" not in build.chat_template_caps:
        return False
    return build.default_generation_settings.params.reasoning_format != "deepseek-legacy"


def _not_live(health: Reply) -> BackendState:
    # {"error":{"message":"Loading model","type":"unavailable_error","code":503}}, README "GET /health"
    if health.status == 503 and b"Loading model" in health.body:
        return BackendState(ready=False, live=False, starting=True, reason="loading its model")
    return BackendState(ready=False, live=False, reason=f"GET /health answered {health.status}")


def _model_names(models: tuple[ModelEntry, ...] | None) -> ModelNames:
    if models is None:
        return ModelNames.UNKNOWN
    # Only a router reports a model's status ("loaded", "unloaded", ...), and only a router rejects unknown names.
    return ModelNames.STRICT if any("status" in model for model in models) else ModelNames.ANY


def _statuses(models: tuple[ModelEntry, ...] | None, *, is_sleeping: bool) -> dict[str, ModelStatus]:
    found = {entry["id"]: ModelStatus.COLD if is_sleeping else _status(entry) for entry in models or ()}
    return {name: status for name, status in found.items() if status is not ModelStatus.AWAKE}


def _status(model: ModelEntry) -> ModelStatus:
    value = status_value(model)
    if value == "failed":
        return ModelStatus.FAILED
    return ModelStatus.COLD if value in _COLD else ModelStatus.AWAKE


def _context_tokens(model: ModelEntry) -> object:
    # The context of one slot, like default_generation_settings.n_ctx in /props, not of all slots: measured on 11549,
    # 1024 for --ctx-size 2048 with two slots. A router reports it for loaded models.
    meta = model.get("meta")
    return meta.get("n_ctx") if isinstance(meta, dict) else None


def _figures(sums: Mapping[str, float]) -> dict[str, float]:
    counts = {name: non_negative(sums.get(name)) for name in _SHOWN}
    return {name: count for name, count in counts.items() if count is not None}
