"""Hugging Face's Text Generation Inference.

Sources: text-generation-inference v3.3.7, ``router/src/server.rs``, ``router/src/lib.rs``, ``docs/openapi.json``,
``backends/v3/src/backend.rs``, ``backends/v3/src/queue.rs``.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from inference_engine_proxy_server.backends.base import (
    BackendState,
    BaseBackend,
    ModelNames,
    Probe,
    decoded,
    non_negative,
)
from inference_engine_proxy_server.backends.prometheus_text import sum_samples

__all__ = ["TGIBackend"]

_RUNNING = "tgi_batch_current_size"
_WAITING = "tgi_queue_size"
_REQUESTS = "tgi_request_count"
_STEPS = "tgi_batch_inference_count"  # counts each prefill and each decoding step, when it begins
_MARKS = frozenset({"model_id", "max_best_of", "max_stop_sequences", "max_total_tokens"})
_Limit = Annotated[int, msgspec.Meta(ge=1, le=10**15)]


class TGIBackend(BaseBackend):
    """Health from ``/health``, load from ``/metrics``, everything else from ``/info``.

    It lists its model as its own owner, so it is recognized by ``/info``. It serves one model under every name; another
    name may also mean a LoRA adapter.
    """

    providers: ClassVar[tuple[str, ...]] = ("tgi",)

    @classmethod
    async def recognizes(cls, probe: Probe) -> bool:
        """By the members of ``/info``; the similar page of text-embeddings-inference lacks them."""
        return (await probe.json("/info")).keys() >= _MARKS

    async def fetch_state(self) -> BackendState:
        """Everything it reports.

        Not live while ``/health`` is not 200. ``capacity``: the requests that it accepts at a time, its queue included;
        it answers 429 to further ones. ``contexts``: of a prompt and its answer together.

        Raises:
            UnreadableState, OSError, TimeoutError: as :class:`Get`, for ``/health``.
        """
        status = (await self.get("/health")).status
        if status != 200:
            return BackendState(ready=False, live=False, reason=f"GET /health answered {status}")
        info = decoded(await self.fetch_body("/info"), _Info)
        page = await self.fetch_body("/metrics")
        models = None if info is None else ({"id": info.model_id, "object": "model", "created": 0, "owned_by": "tgi"},)
        return BackendState(
            ready=True,
            requests_processing=_gauge(page, _RUNNING),
            requests_waiting=_gauge(page, _WAITING),
            capacity=None if info is None else info.max_concurrent_requests,
            progress=non_negative(sum_samples(page or b"", [_STEPS]).get(_STEPS)),
            models=models,
            model_names=ModelNames.ANY,
            contexts={info.model_id: info.max_total_tokens} if info is not None and info.max_total_tokens else {},
            bounds_max_tokens=True,  # 422, "`inputs` tokens + `max_new_tokens` must be <= ..."
            streams_usage_on_request=True,
            engine_version=None if info is None else info.version,
        )


class _Info(msgspec.Struct):
    model_id: str
    max_concurrent_requests: _Limit | None = None
    max_total_tokens: _Limit | None = None
    version: str | None = None


def _gauge(page: bytes | None, name: str) -> float | None:
    """A gauge of the metrics; ``None`` if it is unknown.

    A gauge appears with its first change. Without requests yet, a missing one is 0. With requests, it is one that the
    backend of this server (TensorRT-LLM, llama.cpp, Neuron) never sets.
    """
    if page is None or (page.strip() and b"tgi_" not in page):
        return None
    sums = sum_samples(page, (name, _REQUESTS))
    if name not in sums:
        return None if sums.get(_REQUESTS) else 0.0
    return non_negative(sums[name])
