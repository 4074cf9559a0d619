"""llama.cpp's ``llama-server``, with one model or as a router over several.

Sources: llama.cpp ``tools/server/README.md``; measured on llama.cpp builds 11434 and 11549.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import msgspec

from inference_engine_proxy_server.backends.base import (
    BackendState,
    BaseBackend,
    ModelEntry,
    ModelNames,
    Reply,
    contexts_told,
    non_negative,
)
from inference_engine_proxy_server.backends.prometheus_text import sum_samples

__all__ = ["LlamaCppBackend"]

_PROCESSING = "llamacpp:requests_processing"
_DEFERRED = "llamacpp:requests_deferred"
# What always moves while a request is under way, an embedding too: the counters of tokens wait for the end of the
# prompt or of the whole reply (measured on build 11549). It counts batches: by default 2048 tokens of a prompt are one,
# which takes a CPU many seconds, and by its help text images are none.
_DECODED = "llamacpp:n_decode_total"
_SHOWN = (
    "llamacpp:prompt_tokens_total",
    "llamacpp:prompt_tokens_cached_total",
    "llamacpp:tokens_predicted_total",
)


class LlamaCppBackend(BaseBackend):
    """Health from ``/health``, load from ``/metrics``, models from ``/v1/models``, the number of slots from ``/props``.

    Only ``/health`` can exclude it. ``/metrics`` may be off (it needs ``--metrics``, else 501), blocked for seconds by
    a long prefill (not so in build 11549), or want a model's name (400, router mode): load and progress are then
    unknown, which is neither sick nor idle.

    How much its slots and its cache of prompts in the host's memory hold, it does not tell: the latter's bound is in
    bytes, and one token's is told nowhere.

    A router's load is always unknown: it would have to be asked model by model, and each such question counts as
    use of that model, which keeps it from sleeping (llama.cpp#20227) and from being the one unloaded next. Nor does a
    router tell slots.
    """

    providers: ClassVar[tuple[str, ...]] = ("llamacpp",)
    # An idle kept-alive connection holds one of its few HTTP threads for 5 s: measured on build 11549, a burst of
    # 16 of them delayed the next answer by 10 s, while 100 that were closed at once took 6 ms.
    reuses_connections: ClassVar[bool] = False

    async def fetch_metrics(self) -> tuple[float, bool]:
        """Requests processing and deferred, and whether it takes new ones.

        Raises:
            UnreadableState: it is ready but does not tell its load, or ``/health`` is not HTTP.
            OSError, TimeoutError: ``/health`` did not answer.
        """
        return (await self.fetch_state()).load_and_ready()

    async def fetch_state(self) -> BackendState:
        """Everything it tells.

        Not live while it loads its model or ``/health`` is not 200; live but not ready while it is busier than
        the thresholds. ``capacity``: its slots. ``progress``: batches decoded since its start; ``None`` without
        ``/metrics``. ``contexts``: of one slot. ``figures``: token counters since its start.

        Raises:
            UnreadableState, OSError, TimeoutError: ``/health`` did not answer, or not in HTTP.
        """
        health = await self.get("/health")
        if health.status != 200:
            return _not_live(health)
        models, slots = await self.fetch_models(), await self._fetch_slots()
        page = await self.fetch_body("/metrics")  # last: it alone waits for the step that the engine is at
        sums = sum_samples(page or b"", (_PROCESSING, _DEFERRED, _DECODED, *_SHOWN))
        processing = non_negative(sums.get(_PROCESSING))
        deferred = non_negative(sums.get(_DEFERRED))
        reason = self._why_busy(processing, deferred)
        return BackendState(
            ready=not reason,
            reason=reason,
            requests_processing=processing,
            requests_waiting=deferred,
            capacity=slots,
            progress=non_negative(sums.get(_DECODED)),
            models=models,
            model_names=_model_names(models),
            contexts=contexts_told(models, _context_tokens),
            figures=_figures(sums),
        )

    async def _fetch_slots(self) -> int | None:
        # Asked every time: another process with other slots may have come to this address between two polls, and it
        # costs the engine 0.2 ms (build 11549), less than /metrics. Unlike /slots it cannot be off, and it does not
        # wake a server that sleeps (llama.cpp tools/server/tests/unit/test_sleep.py).
        body = await self.fetch_body("/props")
        try:
            return None if body is None else msgspec.json.decode(body, type=_Props).total_slots
        except (ValueError, RecursionError):
            return None

    def _why_busy(self, processing: float | None, deferred: float | None) -> str:
        if processing is not None and processing > self.thresholds.requests_processing:
            return f"busy: {processing:g} requests processing, limit {self.thresholds.requests_processing:g}"
        if deferred is not None and deferred > self.thresholds.requests_waiting:
            return f"busy: {deferred:g} requests deferred, limit {self.thresholds.requests_waiting:g}"
        return ""


class _Props(msgspec.Struct):
    total_slots: Annotated[int, msgspec.Meta(ge=1)] | None = None  # a router's /props lacks it


def _not_live(health: Reply) -> BackendState:
    # {"error":{"message":"Loading model","type":"unavailable_error","code":503}}, README "GET /health"
    if health.status == 503 and b"Loading model" in health.body:
        return BackendState(ready=False, live=False, starting=True, reason="loading its model")
    return BackendState(ready=False, live=False, reason=f"GET /health answered {health.status}")


def _model_names(models: tuple[ModelEntry, ...] | None) -> ModelNames:
    if models is None:
        return ModelNames.UNKNOWN
    # Only a router tells a model's status ("loaded", "unloaded", ...), and only a router refuses unknown names.
    return ModelNames.STRICT if any("status" in model for model in models) else ModelNames.ANY


def _context_tokens(model: ModelEntry) -> object:
    # Of a slot, as /props has it in default_generation_settings.n_ctx, and not of all (measured on build 11549: 1024 of
    # --ctx-size 2048 with two slots). A router tells it of those that are loaded.
    meta = model.get("meta")
    return meta.get("n_ctx") if isinstance(meta, dict) else None


def _figures(sums: Mapping[str, float]) -> dict[str, float]:
    counts = {name: non_negative(sums.get(name)) for name in _SHOWN}
    return {name: count for name, count in counts.items() if count is not None}
