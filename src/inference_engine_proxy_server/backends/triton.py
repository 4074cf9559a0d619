"""NVIDIA Triton Inference Server with its OpenAI front end.

Sources: triton-inference-server/server at e1db8a60 (2.73.0, 26.09), ``python/openai/openai_frontend`` and
``docs/user_guide/metrics.md``; the metrics of its TensorRT-LLM backend:
triton-inference-server/tensorrtllm_backend at f1ae08cc, ``docs/README-engine-backend-archive.md``, "Triton Metrics".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from inference_engine_proxy_server.backends.base import BackendState, BaseBackend, ModelNames, non_negative
from inference_engine_proxy_server.backends.prometheus_text import samples, sum_samples

__all__ = ["TritonBackend"]

_PENDING = "nv_inference_pending_request_count"
_REQUESTS = "nv_trt_llm_request_metrics"
_BLOCKS = "nv_trt_llm_kv_cache_block_metrics"
_KIND = re.compile(rb'[{,](?:request_type|kv_cache_block_type)="(\w+)"')
_LIVES = frozenset({200, 401, 403})  # the health page may be restricted (--openai-restricted-api)


class TritonBackend(BaseBackend):
    """Readiness from ``/health/ready``, models from ``/v1/models``, queue and capacity from ``/metrics``.

    No load. The requests in Triton's own queue are exact, but those in process are not reported: backends for language
    models take requests as they come. The counts of the TensorRT-LLM backend describe its latest step, and stay as they
    are while nothing happens, so they are only shown. Its limit of active requests is the capacity.
    """

    providers: ClassVar[tuple[str, ...]] = ("triton", "Triton Inference Server")

    async def fetch_state(self) -> BackendState:
        """Whether it works, and its models.

        Not live while ``/health/ready`` is not 200 (400: not every model is ready). ``requests_waiting``: those in
        Triton's own queues. ``capacity`` and ``memory_tokens``: of the TensorRT-LLM backend.

        Raises:
            UnreadableState, OSError, TimeoutError: as :class:`Get`, for ``/health/ready``.
        """
        status = (await self.get("/health/ready")).status
        if status not in _LIVES:
            hint = ": not every model is ready" if status == 400 else ""
            return BackendState(ready=False, live=False, reason=f"GET /health/ready answered {status}{hint}")
        page = await self.fetch_body("/metrics") or b""
        requests, blocks = _sums_by_kind(page, _REQUESTS), _sums_by_kind(page, _BLOCKS)
        return BackendState(
            ready=True,
            requests_waiting=non_negative(sum_samples(page, [_PENDING]).get(_PENDING)),
            capacity=_positive(requests.get("max")),
            memory_tokens=_positive(blocks.get("max", 0.0) * blocks.get("tokens_per", 0.0)),
            models=await self.fetch_models(),
            model_names=ModelNames.STRICT,
            streams_usage_on_request=True,
            figures=_figures(requests, blocks),
        )


def _sums_by_kind(page: bytes, name: str) -> dict[str, float]:
    """The sums of a metric over models, by what its samples count."""
    sums: dict[str, float] = {}
    for sample in samples(page, name):
        kind, value = _KIND.search(sample.labels), non_negative(sample.value)
        if kind is not None and value is not None:
            sums[kind[1].decode()] = sums.get(kind[1].decode(), 0.0) + value
    return sums


def _positive(value: float | None) -> int | None:
    value = non_negative(value)
    return int(value) if value is not None and value >= 1 else None


def _figures(requests: Mapping[str, float], blocks: Mapping[str, float]) -> dict[str, float]:
    shown = {f"{_REQUESTS} {kind}": requests.get(kind) for kind in ("active", "scheduled", "waiting")}
    shown |= {f"{_BLOCKS} {kind}": blocks.get(kind) for kind in ("used", "max")}
    return {name: value for name, value in shown.items() if value is not None}
