"""TensorRT-LLM's ``trtllm-serve``.

Sources: https://nvidia.github.io/TensorRT-LLM/latest/examples/prometheus_metrics.html (at commit 61cef212, 2026);
``tensorrt_llm/serve/openai_server.py`` and ``tensorrt_llm/metrics/collector.py`` of the same year.
"""

from __future__ import annotations

import re
from typing import ClassVar

import msgspec

from inference_engine_proxy_server.backends.base import (
    BackendState,
    BaseBackend,
    Get,
    ModelEntry,
    ModelNames,
    Thresholds,
    UnreadableState,
    decoded,
    non_negative,
)
from inference_engine_proxy_server.backends.prometheus_text import samples, sum_samples

__all__ = ["TensorRTLLMBackend"]

_METRICS = "/prometheus/metrics"
_CAPACITY = "trtllm_max_num_active_requests"
_CONFIG = "trtllm_model_config_info"  # the labels hold the values
_CONTEXT = re.compile(rb'[{,]max_model_len="([1-9][0-9]{0,15})"')
_SHOWN = (
    "trtllm_num_requests_running",
    "trtllm_num_requests_waiting",
    "trtllm_kv_cache_utilization",
    "trtllm_prompt_tokens_total",
    "trtllm_generation_tokens_total",
)


class TensorRTLLMBackend(BaseBackend):
    """Health from ``/health``, models from ``/v1/models``, capacity and context from ``/prometheus/metrics``.

    No load. The server begins to copy the figures of its steps into its metrics when a request ends, and stops when it
    has been idle for half a second. The metrics then keep the values of the last step, in which requests were still
    running; and the next requests are missing until one of them ends.

    ``/metrics`` is not asked: it is JSON, and reading it takes the figures of the steps away from other readers.

    Its streams are not asked for their usage: older versions then report it in every event, not only in one more.
    """

    providers: ClassVar[tuple[str, ...]] = ("trtllm", "tensorrt_llm")

    def __init__(self, url: str, get: Get, thresholds: Thresholds) -> None:
        """As :class:`BaseBackend`; ``thresholds`` are ignored: it reports no load."""
        super().__init__(url, get, thresholds)
        self._version: str | None = None  # unknown until the server was asked, once

    async def fetch_state(self) -> BackendState:
        """Whether it works, its models, and its limits.

        Not live while ``/health`` is not 200. ``capacity``: its limit of active requests, known after its first one.
        ``contexts``: if its configuration has ``max_seq_len``. ``figures``: its metrics, which may be old.

        Raises:
            UnreadableState, OSError, TimeoutError: as :class:`Get`, for ``/health``.
        """
        status = (await self.get("/health")).status
        if status != 200:
            self._version = None
            return BackendState(ready=False, live=False, reason=f"GET /health answered {status}")
        models = await self.fetch_models()
        page = await self.fetch_body(_METRICS) or b""
        sums = sum_samples(page, (_CAPACITY, *_SHOWN))
        capacity = non_negative(sums.pop(_CAPACITY, None))
        return BackendState(
            ready=True,
            capacity=int(capacity) if capacity is not None and capacity >= 1 else None,
            models=models,
            model_names=ModelNames.ANY,
            contexts=_contexts(page, models),
            figures={name: value for name, value in sums.items() if non_negative(value) is not None},
            engine_version=await self._fetch_version(),
        )

    async def _fetch_version(self) -> str | None:
        if self._version is None:
            try:
                reply = await self.get("/version")
            except (OSError, UnreadableState):
                return None
            answer = decoded(reply.body, _Version)
            self._version = "" if answer is None else answer.version  # a server without that page is not asked again
        return self._version or None


class _Version(msgspec.Struct):
    version: str


def _contexts(page: bytes, models: tuple[ModelEntry, ...] | None) -> dict[str, int]:
    lengths = [found[1] for sample in samples(page, _CONFIG) if (found := _CONTEXT.search(sample.labels))]
    return {entry["id"]: int(lengths[0]) for entry in models or ()} if lengths else {}
