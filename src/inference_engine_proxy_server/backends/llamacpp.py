"""llama.cpp's ``llama-server``, with one model or as a router over several.

Sources: llama.cpp ``tools/server/README.md``; measured on llama.cpp builds 11434 and 11549.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import ClassVar

from inference_engine_proxy_server.backends.base import (
    BackendState,
    BaseBackend,
    ModelEntry,
    ModelNames,
    Reply,
    non_negative,
)
from inference_engine_proxy_server.backends.prometheus_text import sum_samples

__all__ = ["LlamaCppBackend"]

_PROCESSING = "llamacpp:requests_processing"
_DEFERRED = "llamacpp:requests_deferred"
_SHOWN = (
    "llamacpp:prompt_tokens_total",
    "llamacpp:prompt_tokens_cached_total",
    "llamacpp:tokens_predicted_total",
)


class LlamaCppBackend(BaseBackend):
    """Health from ``/health``, load from ``/metrics`` (which needs ``--metrics``), models from ``/v1/models``.

    Only ``/health`` can exclude it. ``/metrics`` may be off (501), blocked for seconds by a long prefill, or
    want a model's name (400, router mode): the load is then unknown, which is neither sick nor idle.

    A router's load is always unknown: it would have to be asked model by model, and each such question counts as
    use of that model, which keeps it from sleeping (llama.cpp#20227) and from being the one unloaded next.
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
        the thresholds. ``figures``: token counters since its start.

        Raises:
            UnreadableState, OSError, TimeoutError: ``/health`` did not answer, or not in HTTP.
        """
        health = await self.get("/health")
        if health.status != 200:
            return BackendState(ready=False, live=False, reason=_why_not_live(health))
        page, models = await asyncio.gather(self.fetch_body("/metrics"), self.fetch_models())
        sums = sum_samples(page or b"", (_PROCESSING, _DEFERRED, *_SHOWN))
        processing = non_negative(sums.get(_PROCESSING))
        deferred = non_negative(sums.get(_DEFERRED))
        reason = self._why_busy(processing, deferred)
        return BackendState(
            ready=not reason,
            reason=reason,
            requests_processing=processing,
            requests_waiting=deferred,
            models=models,
            model_names=_model_names(models),
            figures=_figures(sums),
        )

    def _why_busy(self, processing: float | None, deferred: float | None) -> str:
        if processing is not None and processing > self.thresholds.requests_processing:
            return f"busy: {processing:g} requests processing, limit {self.thresholds.requests_processing:g}"
        if deferred is not None and deferred > self.thresholds.requests_waiting:
            return f"busy: {deferred:g} requests deferred, limit {self.thresholds.requests_waiting:g}"
        return ""


def _why_not_live(health: Reply) -> str:
    # {"error":{"message":"Loading model","type":"unavailable_error","code":503}}, README "GET /health"
    if health.status == 503 and b"Loading model" in health.body:
        return "loading its model"
    return f"GET /health answered {health.status}"


def _model_names(models: tuple[ModelEntry, ...] | None) -> ModelNames:
    if models is None:
        return ModelNames.UNKNOWN
    # Only a router tells a model's status ("loaded", "unloaded", ...), and only a router refuses unknown names.
    return ModelNames.STRICT if any("status" in model for model in models) else ModelNames.ANY


def _figures(sums: Mapping[str, float]) -> dict[str, float]:
    counts = {name: non_negative(sums.get(name)) for name in _SHOWN}
    return {name: count for name, count in counts.items() if count is not None}
