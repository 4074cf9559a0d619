"""TabbyAPI, which serves models with ExLlamaV3.

Sources: TabbyAPI at e632af4, August 2026 (it has no versions): ``endpoints/core/router.py``, ``endpoints/core/types``,
``endpoints/OAI``, ``common/auth.py``, ``common/health.py`` and ``backends/exllamav3/model.py``; replies of its HTTP
server without a model.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from inference_engine_proxy_server.backends.base import (
    BackendState,
    BaseBackend,
    ModelNames,
    Probe,
    Reply,
    UnreadableState,
    decoded,
)

__all__ = ["TabbyAPIBackend"]

_Count = Annotated[int, msgspec.Meta(ge=1, le=10**12)]


class _Health(msgspec.Struct):
    issues: list[msgspec.Raw] = []


class _Parameters(msgspec.Struct):
    max_seq_len: _Count | None = None
    cache_size: _Count | None = None
    max_batch_size: _Count | None = None


class _Card(msgspec.Struct):
    """``/v1/model``: the model in memory."""

    id: str
    created: int = 0
    owned_by: str = "tabbyAPI"
    parameters: _Parameters | None = None


class _Served(msgspec.Struct):
    """The same model as an entry of ``/v1/models``."""

    id: str
    object: str
    created: int
    owned_by: str


class TabbyAPIBackend(BaseBackend):
    """Health from ``/health``; model, context, slots and size of the KV cache from ``/v1/model``.

    It does not report its load. It wants a key for ``/v1/model``, unless ``disable_auth`` is set.

    ``/health`` answers 503 from the first request that fails inside the engine until the server is restarted, although
    it recovers. So this status does not make it unusable; it shows as a figure.

    ``/v1/models`` is not asked: for a key of the admin it lists every folder of models, but the model in memory answers
    requests for all of them, unless ``inline_model_loading`` is set.
    """

    providers: ClassVar[tuple[str, ...]] = ("tabbyAPI",)

    @classmethod
    async def recognizes(cls, probe: Probe) -> bool:
        """See :class:`BaseBackend`. Without a key, its models and their owner are hidden."""
        software = (await probe.json("/.well-known/serviceinfo")).get("software")
        return isinstance(software, dict) and software.get("name") == "TabbyAPI"

    async def fetch_state(self) -> BackendState:
        """Everything it reports.

        Live but not ready while no model is in memory: one may be loading for a request that waits for it.
        ``capacity``: its ``max_batch_size``. ``memory_tokens``: its ``cache_size``.
        ``figures``: failures inside the engine since it started.

        Raises:
            UnreadableState, OSError, TimeoutError: as :class:`Get`, for ``/health``.
        """
        health = await self.get("/health")
        if health.status not in (200, 503):
            return BackendState(ready=False, live=False, reason=f"GET /health answered {health.status}")
        failures = decoded(health.body, _Health)
        figures = {} if failures is None else {"health_issues": float(len(failures.issues))}
        reply = await self._fetch_card()
        if reply is not None and reply.status == 503:
            return BackendState(ready=False, reason="no model is loaded", models=(), figures=figures)
        card = decoded(reply.body, _Card) if reply is not None and reply.status == 200 else None
        if card is None:
            return BackendState(ready=True, figures=figures)
        parameters = card.parameters or _Parameters()
        served = _Served(card.id, "model", card.created, card.owned_by)
        return BackendState(
            ready=True,
            capacity=parameters.max_batch_size,
            memory_tokens=parameters.cache_size,
            models=(msgspec.structs.asdict(served),),
            model_names=ModelNames.ANY,
            contexts={} if parameters.max_seq_len is None else {card.id: parameters.max_seq_len},
            figures=figures,
        )

    async def _fetch_card(self) -> Reply | None:
        try:
            return await self.get("/v1/model")
        except (OSError, UnreadableState):
            return None
