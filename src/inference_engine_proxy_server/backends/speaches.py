"""Speaches, a server for speech recognition and speech synthesis.

Sources: Speaches ``src/speaches/routers/misc.py``, ``routers/models.py``, ``model_aliases.py``; replies recorded from
Speaches 0.8.3 (its source of March 2026).
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from inference_engine_proxy_server.backends.base import (
    BackendState,
    BaseBackend,
    ModelEntry,
    ModelNames,
    ModelStatus,
    Probe,
    decoded,
)

__all__ = ["SpeachesBackend"]


class SpeachesBackend(BaseBackend):
    """Health from ``/health``, models from ``/v1/models``, and from ``/api/ps`` which of them are loaded.

    It lists the models on its disk, and loads one when a request names it. Its models are owned by their authors. It
    reports no load.
    """

    providers: ClassVar[tuple[str, ...]] = ("speaches",)

    @classmethod
    async def recognizes(cls, probe: Probe) -> bool:
        """By the title of its API."""
        about = (await probe.json("/openapi.json")).get("info")
        return isinstance(about, dict) and about.get("title") == "Speaches"

    async def fetch_state(self) -> BackendState:
        """Whether it is live, and its models.

        Not live while ``/health`` is not 200. Other names than those of ``models`` may be its aliases, such as
        ``whisper-1``, which it does not list.

        Raises:
            UnreadableState, OSError, TimeoutError: as :class:`Get`, for ``/health``.
        """
        if (status := (await self.get("/health")).status) != 200:
            return BackendState(ready=False, live=False, reason=f"GET /health answered {status}")
        models = await self.fetch_models()
        return BackendState(
            ready=True,
            models=models,
            model_names=ModelNames.UNKNOWN,
            statuses=_statuses(models, decoded(await self.fetch_body("/api/ps"), _Loaded)),
        )


class _Loaded(msgspec.Struct):
    """``/api/ps``."""

    models: list[str]


def _statuses(models: tuple[ModelEntry, ...] | None, loaded: _Loaded | None) -> dict[str, ModelStatus]:
    if loaded is None:
        return {}
    return {entry["id"]: ModelStatus.COLD for entry in models or () if entry["id"] not in loaded.models}
