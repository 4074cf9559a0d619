"""Infinity (``infinity-emb``), a server for embeddings, reranking and classification.

Sources: Infinity ``infinity_emb/infinity_server.py``, ``infinity_emb/inference/batch_handler.py``; measured on
infinity-emb 0.0.78.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from inference_engine_proxy_server.backends.base import (
    BackendState,
    BaseBackend,
    Get,
    ModelEntry,
    ModelNames,
    Probe,
    Thresholds,
    UnreadableState,
    parse_models,
)

__all__ = ["InfinityBackend"]

_OWNER = "infinity"
_LISTS = ("/v1/models", "/models")
"""Where the list of models is: with ``--url-prefix /v1``, and without it."""


class InfinityBackend(BaseBackend):
    """Health from ``/health``, models and the state of their queues from the list of models.

    It reports its load in texts, and one request may have thousands of them: its figures are shown, but the proxy
    balances by its own requests. A model whose queue is full rejects all requests (429).
    """

    providers: ClassVar[tuple[str, ...]] = (_OWNER,)

    def __init__(self, url: str, get: Get, thresholds: Thresholds) -> None:
        """As :class:`BaseBackend`; ``thresholds`` are ignored, because it does not count requests."""
        super().__init__(url, get, thresholds)
        self._list = ""  # where its models are listed; empty while that is not known

    @classmethod
    async def recognizes(cls, probe: Probe) -> bool:
        """By the owner of its models, if it was started without ``--url-prefix /v1``."""
        listing = await probe.get("/v1/models")
        if listing is None or listing.status == 200:
            return False
        models = (await probe.json("/models")).get("data")
        entries = models if isinstance(models, list) else []
        return any(isinstance(entry, dict) and entry.get("owned_by") == _OWNER for entry in entries)

    async def fetch_state(self) -> BackendState:
        """Everything it reports.

        Not live while ``/health`` is not 200; it does not listen before its models are loaded. Live but not ready while
        the queue of each model is full.
        ``figures``: texts that wait, over all models, as ``queue_absolute``.
        No contexts: it truncates longer texts.

        Raises:
            UnreadableState, OSError, TimeoutError: as :class:`Get`, for ``/health``.
        """
        if (status := (await self.get("/health")).status) != 200:
            return BackendState(ready=False, live=False, reason=f"GET /health answered {status}")
        models = await self.fetch_models()
        queues = [queue for queue in map(_queue, models or ()) if queue is not None]
        is_full = bool(queues) and all(queue.queue_fraction > 1 for queue in queues)
        return BackendState(
            ready=not is_full,
            reason="busy: the queue of each model is full" if is_full else "",
            models=models,
            model_names=ModelNames.STRICT,
            figures={"queue_absolute": float(sum(queue.queue_absolute for queue in queues))} if queues else {},
        )

    async def fetch_models(self) -> tuple[ModelEntry, ...] | None:
        """As :meth:`BaseBackend.fetch_models`, also of a server without ``--url-prefix /v1``."""
        asked, self._list = (self._list,) if self._list else _LISTS, ""
        for path in asked:
            body = await self.fetch_body(path)
            if body is not None:
                self._list = path  # each poll of the other path would be logged as an error
                return _models_in(body)
        return None


def _models_in(body: bytes) -> tuple[ModelEntry, ...] | None:
    try:
        return parse_models(body)
    except UnreadableState:
        return None


class _Queue(msgspec.Struct):
    """``stats`` of a model."""

    queue_fraction: Annotated[float, msgspec.Meta(ge=0)]
    queue_absolute: Annotated[int, msgspec.Meta(ge=0, le=10**12)]


def _queue(model: ModelEntry) -> _Queue | None:
    try:
        return msgspec.convert(model.get("stats"), _Queue)
    except msgspec.ValidationError:
        return None
