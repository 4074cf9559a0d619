"""SGLang's server.

Sources: the wheel of SGLang 0.5.23, ``sglang/srt/entrypoints/http_server.py`` and ``v1_loads.py``,
``sglang/srt/managers/load_snapshot.py`` and ``scheduler.py``; for older servers, the wheels of 0.5.6 and 0.5.9.
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
    context_lengths,
    decoded,
    non_negative,
)
from inference_engine_proxy_server.backends.prometheus_text import samples

__all__ = ["SGLangBackend"]

_LOADS = "/v1/loads?include=core"
_NEEDS_KEY = frozenset({401, 403})
_Count = Annotated[int, msgspec.Meta(ge=0, le=10**15)]


class SGLangBackend(BaseBackend):
    """Readiness from ``/ready``, load and capacity from ``/v1/loads``, models from ``/v1/models``.

    ``/health`` is not used: it generates a token, takes a second, and waits for the scheduler up to 20 s. Nor is
    ``/metrics``: its gauges are updated every 40 steps, and in 0.5.9 every 30 s while the server is idle. They show
    requests that have long been answered.

    0.5.9 has no ``/ready`` yet: such servers are ready when they list their models. 0.5.6 has no ``/v1/loads`` but
    ``/get_load``, which lacks the capacity.
    """

    providers: ClassVar[tuple[str, ...]] = ("sglang",)

    @classmethod
    async def recognizes(cls, probe: Probe) -> bool:
        """By its metrics, which need no key, if it does not show its models without one."""
        reply = await probe.get("/v1/models")
        if reply is None or reply.status != 401:
            return False
        return any(samples(await probe.text("/metrics"), "sglang:num_running_reqs"))

    def __init__(self, url: str, get: Get, thresholds: Thresholds) -> None:
        """As :class:`BaseBackend`; ``thresholds`` are ignored: its queue is part of its load."""
        super().__init__(url, get, thresholds)
        self._missing: set[str] = set()  # paths that this version lacks, asked for once
        self._was_ready = False

    async def fetch_state(self) -> BackendState:
        """Everything it reports, summed over its data-parallel ranks.

        Not live while it starts, is paused, is found unhealthy, or shuts down. Starting until it is ready for the first
        time. ``progress``: the times of its latest snapshots, which it takes at each step. ``capacity``: its limit of
        running requests; the memory may allow fewer.

        Raises:
            UnreadableState, OSError, TimeoutError: as :class:`Get`, for the path that its readiness is read from.
        """
        path, status = "/ready", await self._status_of("/ready")
        if status is None:
            path, status = "/v1/models", (await self.get("/v1/models")).status
        if status != 200 and status not in _NEEDS_KEY:
            self._missing.clear()  # another version may come back at this address
            reason = f"GET {path} answered {status}: it is starting, paused, unhealthy, or shutting down"
            return BackendState(ready=False, live=False, starting=not self._was_ready, reason=reason)
        self._was_ready = True
        models, load = await self.fetch_models(), await self._fetch_load()
        return BackendState(
            ready=True,
            requests_processing=load.processing,
            requests_waiting=load.waiting,
            capacity=load.capacity or None,
            context_use=load.context_use,
            memory_tokens=load.memory_tokens or None,
            progress=load.progress,
            models=models,
            # Completions ignore the name; responses answer 404, which the proxy handles like a path that is missing.
            model_names=ModelNames.ANY,
            contexts=_contexts(models),
            bounds_max_tokens=True,  # 400, "Requested token count exceeds the model's maximum context length"
            streams_usage_on_request=True,
            figures=load.figures,
            engine_version=load.version,
        )

    async def _status_of(self, path: str) -> int | None:
        """The status of a reply; ``None`` if this version lacks the path."""
        if path in self._missing:
            return None
        status = (await self.get(path)).status
        if status == 404:
            self._missing.add(path)
            return None
        return status

    async def _fetch_load(self) -> _Load:
        if _LOADS not in self._missing:
            try:
                reply = await self.get(_LOADS)
            except (OSError, UnreadableState):
                return _Load()
            if reply.status != 404:
                page = decoded(reply.body, _Loads)
                return _load_of(page) if page is not None and page.loads else _Load()
            self._missing.add(_LOADS)
        old = decoded(await self.fetch_body("/get_load"), list[_OldLoad])
        if not old:
            return _Load()
        waiting = sum(rank.num_waiting_reqs for rank in old)
        return _Load(processing=float(sum(rank.num_reqs for rank in old) - waiting), waiting=float(waiting))


class _Rank(msgspec.Struct):
    """One data-parallel rank in ``/v1/loads``."""

    num_running_reqs: _Count
    num_waiting_reqs: _Count
    max_running_requests: _Count = 0
    max_total_num_tokens: _Count = 0
    token_usage: float = 0.0
    gen_throughput: float = 0.0
    cache_hit_rate: float = 0.0
    timestamp: float | None = None


class _Loads(msgspec.Struct):
    loads: list[_Rank]
    version: str | None = None


class _OldLoad(msgspec.Struct):
    num_reqs: _Count  # the waiting ones included
    num_waiting_reqs: _Count


class _Load(msgspec.Struct):
    processing: float | None = None
    waiting: float | None = None
    capacity: int = 0
    context_use: float | None = None
    memory_tokens: int = 0
    progress: float | None = None
    figures: dict[str, float] = {}
    version: str | None = None


def _load_of(page: _Loads) -> _Load:
    ranks = page.loads
    times = [rank.timestamp for rank in ranks if rank.timestamp is not None]
    figures = {
        "gen_throughput": non_negative(sum(rank.gen_throughput for rank in ranks)),
        "cache_hit_rate": non_negative(max(rank.cache_hit_rate for rank in ranks)),
    }
    return _Load(
        processing=float(sum(rank.num_running_reqs for rank in ranks)),
        waiting=float(sum(rank.num_waiting_reqs for rank in ranks)),
        capacity=sum(rank.max_running_requests for rank in ranks),
        context_use=non_negative(max(rank.token_usage for rank in ranks)),
        memory_tokens=sum(rank.max_total_num_tokens for rank in ranks),
        progress=non_negative(sum(times)) if times else None,
        figures={name: value for name, value in figures.items() if value is not None},
        version=page.version,
    )


def _contexts(models: tuple[ModelEntry, ...] | None) -> dict[str, int]:
    """A LoRA adapter has ``null``, and the context of the model that it names as its parent."""
    lengths = {entry["id"]: entry.get("max_model_len") for entry in models or ()}
    return context_lengths(models, lambda entry: lengths[entry["id"]] or lengths.get(str(entry.get("parent"))))
