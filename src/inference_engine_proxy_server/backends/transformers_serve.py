"""``transformers serve``, the server of Hugging Face's transformers.

Sources: transformers ``cli/serving/server.py``, ``cli/serving/model_manager.py``; measured on transformers 5.24.0.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from inference_engine_proxy_server.backends.base import (
    BackendState,
    BaseBackend,
    ModelEntry,
    ModelNames,
    ModelStatus,
    Probe,
    Reply,
)

__all__ = ["TransformersServeBackend"]

_OWN_PATHS = frozenset({"/load_model", "/reset", "/v1/chat/completions"})


class TransformersServeBackend(BaseBackend):
    """Health from ``/health``, models from ``/v1/models``. It reports no load.

    The owner of a model is its author, or ``local``. A server that was started with a model loads it before it listens,
    and rejects other names. Another one loads models on demand, and answers nothing meanwhile: measured, ``/health``
    took as long as the load, 9 s.

    Without ``--continuous-batching``, which it does not report, a model answers one request at a time. It begins the
    reply of a waiting stream at once, with the role, so that the first event says nothing about its turn.
    """

    providers: ClassVar[tuple[str, ...]] = ("transformers",)

    @classmethod
    async def recognizes(cls, probe: Probe) -> bool:
        """By paths that no other server has together."""
        paths = (await probe.json("/openapi.json")).get("paths")
        return isinstance(paths, dict) and paths.keys() >= _OWN_PATHS

    async def fetch_state(self) -> BackendState:
        """Whether it is live, and its models.

        Not live while ``/health`` is not 200 (503: the worker of its continuous batching died, for good).

        Raises:
            UnreadableState, OSError, TimeoutError: as :class:`Get`, for ``/health``.
        """
        health = await self.get("/health")
        if health.status != 200:
            return BackendState(ready=False, live=False, reason=_why_not_live(health))
        models = await self.fetch_models()
        return BackendState(
            ready=True,
            models=models,
            # It takes any name for one of a model on the hub, and may download it.
            model_names=ModelNames.STRICT if models else ModelNames.UNKNOWN,
            statuses=_statuses(models or ()),
        )


def _why_not_live(health: Reply) -> str:
    if health.status == 503 and b"cb_worker_dead" in health.body:
        return "the worker of its continuous batching died; restart it"
    return f"GET /health answered {health.status}"


def _statuses(models: Iterable[ModelEntry]) -> dict[str, ModelStatus]:
    return {entry["id"]: ModelStatus.COLD for entry in models if entry.get("status") == {"value": "unloaded"}}
