"""LM Studio, with its window or headless (``llmster``).

Sources: LM Studio's documentation (lmstudio-ai/docs at c6854fb: ``1_developer/2_rest/list.md``, ``endpoints.mdx`` and
``0_core/ttl-and-auto-evict.md``), ``createClient.ts`` of lmstudio-ai/lms, and the issues 671, 1323, 1666, 1796 and 2390
of lmstudio-ai/lmstudio-bug-tracker.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, NamedTuple

import msgspec

from inference_engine_proxy_server.backends.base import (
    BackendState,
    BaseBackend,
    Get,
    ModelNames,
    ModelReport,
    ModelStatus,
    Probe,
    Thresholds,
    UnreadableState,
    decoded,
    parse_models,
)

__all__ = ["LMStudioBackend"]

_Count = Annotated[int, msgspec.Meta(ge=1, le=10**12)]
_NEW, _OLD = "/api/v1/models", "/api/v0/models"


class _Config(msgspec.Struct):
    context_length: _Count | None = None
    parallel: _Count | None = None


class _Instance(msgspec.Struct):
    id: str
    config: _Config = msgspec.field(default_factory=_Config)


class _Model(msgspec.Struct):
    key: str
    loaded_instances: list[_Instance] = []


class _NewList(msgspec.Struct):
    """``/api/v1/models``, since 0.4.0: the downloaded models, each with its loaded instances."""

    models: list[_Model]


class _OldModel(msgspec.Struct):
    id: str
    state: str
    loaded_context_length: _Count | None = None


class _OldList(msgspec.Struct):
    """``/api/v0/models``, since 0.3.6: the downloaded models, and whether each is loaded."""

    data: list[_OldModel]


class _Known(NamedTuple):
    """The latest report about one model.

    Attributes:
        is_loaded: whether it is in memory.
        context: its context length in tokens, if it is loaded; ``None``: not reported.
        capacity: requests that it processes at a time, if it is loaded; ``None``: not reported.
    """

    is_loaded: bool = False
    context: int | None = None
    capacity: int | None = None


class LMStudioBackend(BaseBackend):
    """Health and models from ``/v1/models``; which of them are loaded, from its own API.

    It reports neither its load nor its version, and ``owned_by`` is a placeholder.

    To a path that it does not have, it answers 200, with an error in the body and in its log. The older form of its own
    API is therefore asked only if the newer one is missing, and the one that answered is asked from then on, until
    ``/v1/models`` fails.

    It loads a model when a request names it, and by default (*Auto-Evict*) unloads the one before, even while that one
    answers. Whether it does is not reported, so ``most_models`` is what it holds now: a request for another model waits
    for its turn.
    """

    providers: ClassVar[tuple[str, ...]] = ("lmstudio",)
    health_path: ClassVar[str] = "/v1/models"

    def __init__(self, url: str, get: Get, thresholds: Thresholds) -> None:
        """As :class:`BaseBackend`; ``thresholds`` are ignored, because there is no load to compare with them."""
        super().__init__(url, get, thresholds)
        self._list_path: str | None = None  # unknown until one of the two has answered
        self._known: Mapping[str, _Known] = {}  # as last reported

    @classmethod
    async def recognizes(cls, probe: Probe) -> bool:
        """See :class:`BaseBackend`."""
        return (await probe.json("/lmstudio-greeting")).get("lmstudio") is True

    async def fetch_state(self) -> BackendState:
        """Everything it reports.

        Raises:
            UnreadableState, OSError, TimeoutError: as :class:`Get`, for ``/v1/models``.
        """
        reply = await self.get(self.health_path)
        if reply.status in (401, 403):
            return BackendState(ready=True)  # it wants a key, which clients may have
        if reply.status != 200:
            self._list_path, self._known = None, {}  # another process may take over the address
            return BackendState(ready=False, live=False, reason=f"GET /v1/models answered {reply.status}")
        try:
            models = parse_models(reply.body)
        except UnreadableState:
            return BackendState(ready=True)
        self._known = known = await self._fetch_known() or self._known
        listed = {model["id"]: known[model["id"]] for model in models if model["id"] in known}
        return BackendState(
            ready=True,
            models=models,
            model_names=ModelNames.UNKNOWN,
            statuses={name: ModelStatus.COLD for name, one in listed.items() if not one.is_loaded},
            model_reports={name: _report(one) for name, one in listed.items()},
            most_models=max(1, sum(one.is_loaded for one in listed.values())) if listed else None,
            contexts={name: one.context for name, one in listed.items() if one.context is not None},
        )

    async def _fetch_known(self) -> Mapping[str, _Known]:
        """What its own API says of each model, by the names under which requests find it; empty without an answer."""
        for path in (_NEW, _OLD) if self._list_path is None else (self._list_path,):
            try:
                reply = await self.get(path)
            except (OSError, UnreadableState):
                break  # no answer does not mean that the path is missing
            found = decoded(reply.body, _NewList) or decoded(reply.body, _OldList)
            if found is not None:
                self._list_path = path
                return _of_new(found) if isinstance(found, _NewList) else _of_old(found)
        return {}


def _of_new(found: _NewList) -> dict[str, _Known]:
    known: dict[str, _Known] = {}
    for model in found.models:
        instances = {
            one.id: _Known(True, one.config.context_length, one.config.parallel) for one in model.loaded_instances
        }
        # The first instance has the key of its model as its id, unless the operator chose another one.
        known |= {model.key: next(iter(instances.values()), _Known())} | instances
    return known


def _of_old(found: _OldList) -> dict[str, _Known]:
    return {one.id: _Known(one.state == "loaded", one.loaded_context_length) for one in found.data}


def _report(known: _Known) -> ModelReport:
    status = "loaded" if known.is_loaded else "not-loaded"
    return ModelReport(status, in_memory=known.is_loaded, is_ready=known.is_loaded, capacity=known.capacity)
