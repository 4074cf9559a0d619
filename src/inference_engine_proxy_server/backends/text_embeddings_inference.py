"""Hugging Face's Text Embeddings Inference (TEI), a server for embeddings, reranking and classification.

Sources: text-embeddings-inference 1.9.3, ``router/src/http/server.rs``, ``router/src/lib.rs``, ``core/src/queue.rs``,
``core/src/infer.rs``. Its replies are written from these; no package of it for a CPU was found.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from inference_engine_proxy_server.backends.base import (
    BackendState,
    BaseBackend,
    ModelEntry,
    ModelNames,
    Probe,
    Reply,
    decoded,
    non_negative,
)
from inference_engine_proxy_server.backends.prometheus_text import sum_samples

__all__ = ["TextEmbeddingsInferenceBackend"]

_OWNER = "text-embeddings-inference"
_QUEUE = "te_queue_size"
_OWN_FIELDS = frozenset({"max_batch_tokens", "max_client_batch_size", "tokenization_workers"})


class TextEmbeddingsInferenceBackend(BaseBackend):
    """Health from ``/health``, its model and limits from ``/info``, the length of its queue from ``/metrics``.

    It counts texts, of which one request may have 32: its queue is shown, but the proxy balances by its own requests.
    Over its limit, it rejects requests (429).
    """

    providers: ClassVar[tuple[str, ...]] = (_OWNER, "tei")

    @classmethod
    async def recognizes(cls, probe: Probe) -> bool:
        """By its limits. With a missing key, by the queue among its metrics, which need no key."""
        about = await probe.json("/info")
        return about.keys() >= _OWN_FIELDS or _QUEUE in sum_samples(await probe.text("/metrics"), (_QUEUE,))

    async def fetch_state(self) -> BackendState:
        """Everything it reports.

        Not live while ``/health`` is not 200 (503: the model does not answer); it does not listen before its model is
        loaded.
        ``capacity``: texts that it accepts at a time, waiting ones included (``--max-concurrent-requests``).
        ``figures``: texts that wait, as ``te_queue_size``.
        No contexts: by default, it truncates longer texts.

        Raises:
            UnreadableState, OSError, TimeoutError: as :class:`Get`, for ``/health``.
        """
        health = await self.get("/health")
        if health.status != 200:
            return BackendState(ready=False, live=False, reason=_why_not_live(health))
        about = decoded(await self.fetch_body("/info"), _About)
        waiting = non_negative(sum_samples(await self.fetch_body("/metrics") or b"", (_QUEUE,)).get(_QUEUE))
        return BackendState(
            ready=True,
            capacity=None if about is None else about.max_concurrent_requests,
            models=None if about is None else (_entry(about),),
            model_names=ModelNames.ANY,
            figures={} if waiting is None else {_QUEUE: waiting},
            engine_version=None if about is None else about.version,
        )


class _About(msgspec.Struct):
    """``/info``."""

    model_id: str
    served_model_name: str | None = None  # missing before version 1.9
    max_concurrent_requests: Annotated[int, msgspec.Meta(ge=1)] | None = None
    version: str | None = None


def _entry(about: _About) -> ModelEntry:
    """What a list of models would say. The server ignores the names in requests, so either name will do."""
    name = about.served_model_name or about.model_id
    return {"id": name, "object": "model", "created": 0, "owned_by": _OWNER, "root": about.model_id}


def _why_not_live(health: Reply) -> str:
    return "its model does not answer" if health.status == 503 else f"GET /health answered {health.status}"
