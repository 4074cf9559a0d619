"""Ollama.

Sources: Ollama 0.33.0 (``server/routes.go``, ``server/sched.go``, ``openai/openai.go``, ``middleware/openai.go`` and
``llm/llama_server.go`` at fb30760, ``docs/api.md``, ``docs/faq.mdx``).
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
    ModelReport,
    ModelStatus,
    Probe,
    Thresholds,
    decoded,
)

__all__ = ["OllamaBackend"]

_GREETING = b"Ollama is running"
_Size = Annotated[int, msgspec.Meta(ge=0, le=10**18)]


class _Version(msgspec.Struct):
    version: str


class _Installed(msgspec.Struct):
    """A model of ``/api/tags``. One with a ``remote_host`` runs in Ollama's cloud, and is never loaded here."""

    model: str
    digest: str = ""
    remote_host: str = ""


class _Loaded(msgspec.Struct):
    """A model of ``/api/ps``, in memory or about to be loaded. ``context_length`` is that of one request."""

    model: str
    digest: str = ""
    context_length: _Size = 0
    size: _Size = 0
    size_vram: _Size = 0


class _Tags(msgspec.Struct):
    models: list[_Installed]


class _Running(msgspec.Struct):
    models: list[_Loaded]


class OllamaBackend(BaseBackend):
    """Health and version from ``/api/version``, models from ``/v1/models``, ``/api/tags`` and ``/api/ps``.

    It reports neither its load nor ``OLLAMA_NUM_PARALLEL``, the requests that it processes at a time for each model.
    ``owned_by`` is the namespace of a model, usually ``library``, so the engine is recognized by the text at ``/``.

    ``/api/ps`` does not answer while a model is being loaded, because the scheduler locks the model. It is therefore
    asked last, and without an answer the previous one holds.

    A model in memory serves requests under all names that have its digest.
    """

    providers: ClassVar[tuple[str, ...]] = ("ollama",)
    health_path: ClassVar[str] = "/api/version"

    def __init__(self, url: str, get: Get, thresholds: Thresholds) -> None:
        """As :class:`BaseBackend`; ``thresholds`` are ignored, because there is no load to compare with them."""
        super().__init__(url, get, thresholds)
        self._loaded: list[_Loaded] | None = None  # unknown until it was reported

    @classmethod
    async def recognizes(cls, probe: Probe) -> bool:
        """See :class:`BaseBackend`."""
        return (await probe.text("/")).strip() == _GREETING

    async def fetch_state(self) -> BackendState:
        """Everything it reports.

        ``contexts``: of the models in memory, for one request; a request of Ollama's own API may change it
        (``num_ctx``), which loads the model anew.
        ``figures``: bytes of the models in memory, and the part of them that is in GPU memory.

        Raises:
            UnreadableState, OSError, TimeoutError: as :class:`Get`, for ``/api/version``.
        """
        reply = await self.get(self.health_path)
        if reply.status != 200:
            self._loaded = None  # another process may take over the address
            return BackendState(ready=False, live=False, reason=f"GET /api/version answered {reply.status}")
        version = decoded(reply.body, _Version)
        models = await self.fetch_models()
        installed = decoded(await self.fetch_body("/api/tags"), _Tags)
        running = decoded(await self.fetch_body("/api/ps"), _Running)
        if running is not None:
            self._loaded = running.models
        reports = _reports(models or (), installed.models if installed else [], self._loaded)
        return BackendState(
            ready=True,
            models=models,
            # It also serves names that it does not list: with a registry or a namespace in front, in another case, and
            # models of its cloud.
            model_names=ModelNames.UNKNOWN,
            statuses={name: ModelStatus.COLD for name, report in reports.items() if not report.is_ready},
            model_reports=reports,
            contexts=_contexts(models or (), installed.models if installed else [], self._loaded or []),
            streams_usage_on_request=True,
            figures=_figures(self._loaded),
            engine_version=None if version is None else version.version,
        )


def _reports(
    models: tuple[ModelEntry, ...], installed: list[_Installed], loaded: list[_Loaded] | None
) -> dict[str, ModelReport]:
    """A report of each model, by id; empty if it is unknown which ones are loaded."""
    if loaded is None:
        return {}
    in_memory = set(_by_name(installed, loaded))
    remote = {one.model for one in installed if one.remote_host}
    return {
        name: ModelReport(
            status="loaded" if name in in_memory else "remote" if name in remote else "unloaded",
            in_memory=name in in_memory,
            is_ready=name in in_memory or name in remote,
        )
        for name in (model["id"] for model in models)
    }


def _contexts(models: tuple[ModelEntry, ...], installed: list[_Installed], loaded: list[_Loaded]) -> dict[str, int]:
    found = _by_name(installed, loaded)
    lengths = {model["id"]: found[model["id"]].context_length for model in models if model["id"] in found}
    return {name: length for name, length in lengths.items() if length > 0}  # older versions do not report it


def _by_name(installed: list[_Installed], loaded: list[_Loaded]) -> dict[str, _Loaded]:
    """The models in memory, by each of their names."""
    by_digest = {one.digest: one for one in loaded if one.digest}
    same = {one.model: by_digest[one.digest] for one in installed if one.digest in by_digest}
    return same | {one.model: one for one in loaded}


def _figures(loaded: list[_Loaded] | None) -> dict[str, float]:
    if loaded is None:
        return {}
    return {"size": sum(one.size for one in loaded), "size_vram": sum(one.size_vram for one in loaded)}
