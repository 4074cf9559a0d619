"""`/admin`: the operators' views and commands. The gate admits only requests with ADMIN_KEY."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse

from inference_engine_proxy_server.access.allowances import Allowances
from inference_engine_proxy_server.access.key_ring import KeyRing
from inference_engine_proxy_server.config.api_keys import ApiKey
from inference_engine_proxy_server.dashboard.backend_facts import facts_of
from inference_engine_proxy_server.endpoints.all_workers import AllWorkers, SiblingAnswers
from inference_engine_proxy_server.endpoints.backend_commands import Move, WaitSeconds, find_backend
from inference_engine_proxy_server.endpoints.usage import described_budgets
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.departures import Departures
from inference_engine_proxy_server.fleet.fleet import Fleet
from inference_engine_proxy_server.fleet.snapshot import BackendSnapshot
from inference_engine_proxy_server.routing.decisions import KEPT

__all__ = ["admin_router", "described"]

_RESPONSES: dict[int | str, dict[str, Any]] = {401: {}, 404: {"description": "ADMIN_KEY is not set"}}
_BACKEND_RESPONSES: dict[int | str, dict[str, Any]] = {
    401: {},
    404: {"description": "There is no such backend, or ADMIN_KEY is not set"},
}

_Limit = Annotated[int, Query(ge=1, le=KEPT, description="Most decisions to return.")]


def admin_router(
    fleet: Fleet,
    departures: Departures,
    ring: KeyRing | None,
    allowances: Allowances,
    workers: AllWorkers,
    sources: Callable[[], Mapping[str, str]],
    *,
    is_shared: bool = False,
) -> APIRouter:
    """The operators' endpoints.

    Args:
        fleet: the fleet.
        departures: the backends that have left it.
        ring: the keys of clients; ``None`` when there are none.
        allowances: the remaining allowances of the keys in this worker.
        workers: this worker and its siblings.
        sources: the source of each backend, by base URL.
        is_shared: whether the limits of keys hold for all replicas together.
    """
    router = APIRouter(prefix="/admin", tags=["admin"])
    _add_keys(router, ring, allowances, workers, is_shared=is_shared)
    _add_backends(router, fleet, departures, workers, sources)
    _add_drain(router, fleet, workers)
    _add_decisions(router, workers)
    return router


def _add_keys(
    router: APIRouter, ring: KeyRing | None, allowances: Allowances, workers: AllWorkers, *, is_shared: bool
) -> None:
    covered = "all_replicas" if is_shared else "process"

    @router.get("/keys", summary="The keys of clients: permissions and remaining limits, never secrets",
                responses=_RESPONSES)  # fmt: skip
    async def keys() -> dict[str, Any]:
        siblings = await workers.keys()
        rows = [_with_siblings(_described_key(key, allowances), siblings) for key in ring or ()]
        return {"keys": rows, "limits_cover": covered, **workers.silence(siblings)}


def _add_backends(
    router: APIRouter,
    fleet: Fleet,
    departures: Departures,
    workers: AllWorkers,
    sources: Callable[[], Mapping[str, str]],
) -> None:
    @router.get("/backends", summary="The backends: state of each, its reason, and where it comes from",
                responses=_RESPONSES)  # fmt: skip
    async def backends() -> dict[str, Any]:
        siblings, source_of = await workers.fleet(), sources()
        rows = [
            {**described(backend, siblings), "source": source_of.get(backend.url)}
            for backend in fleet.snapshot().backends
        ]
        waiting = workers.waiting + sum(one["waiting"] for one in siblings.answers)
        leaving = [
            {"name": backend.config.name, "url": backend.url, "requests_in_flight": backend.load.proxy_leases}
            for backend in departures.backends
        ]
        return {"backends": rows, "leaving": leaving, "waiting": waiting, **workers.silence(siblings)}


def _add_drain(router: APIRouter, fleet: Fleet, workers: AllWorkers) -> None:
    def answer(backend: Backend, siblings: SiblingAnswers) -> dict[str, Any]:
        row = described(BackendSnapshot.of(backend, fleet.clock()), siblings)
        return {**row, **workers.silence(siblings)}

    @router.post("/backends/{name:path}/drain", summary="Give a backend no new requests; reports when to stop it",
                 responses=_BACKEND_RESPONSES)  # fmt: skip
    async def drain(name: str, wait_seconds: WaitSeconds = 0, move: Move = False) -> dict[str, Any]:
        backend = find_backend(fleet, name)
        await workers.drain(backend, wait_seconds, moves=move)
        return answer(backend, await workers.fleet_once_drained(backend))

    @router.post("/backends/{name:path}/undrain", summary="Give a drained backend requests again",
                 responses=_BACKEND_RESPONSES)  # fmt: skip
    async def undrain(name: str) -> dict[str, Any]:
        backend = find_backend(fleet, name)
        workers.set_draining(backend, is_draining=False)
        return answer(backend, await workers.fleet())


def _add_decisions(router: APIRouter, workers: AllWorkers) -> None:
    @router.get("/decisions", summary="The latest decisions: which backend got a request, and the compared candidates",
                responses=_RESPONSES)  # fmt: skip
    async def decisions(limit: _Limit = 20) -> JSONResponse:
        siblings = await workers.decisions()
        every = [*workers.own_decisions(), *(made for one in siblings.answers for made in one["decisions"])]
        newest = sorted(every, key=lambda decision: -decision["at"])[:limit]
        # Not a model: FastAPI would validate every number of hundreds of candidates.
        return JSONResponse({"decisions": newest, **workers.silence(siblings)})


def described(backend: BackendSnapshot, siblings: SiblingAnswers) -> dict[str, Any]:
    """One backend, as operators see it."""
    is_unused = not backend.requests_in_flight and not siblings.requests_on(backend.url)
    return {
        "name": backend.name,
        "url": backend.url,
        **facts_of(backend),
        "takes_requests": backend.takes_requests,
        "is_last_choice": backend.is_last_choice,
        "safe_to_stop": backend.is_draining and siblings.drained(backend.url) and is_unused,
        "load": backend.load,
        "limit": None if backend.limit == math.inf else backend.limit,
        "weight": backend.weight,
        "tier": backend.tier,
        "share": backend.share,
        **({} if siblings.silent_replicas is None else {"replicas": siblings.by_replica(backend.url)}),
    }


def _described_key(key: ApiKey, allowances: Allowances) -> dict[str, Any]:
    allowance = allowances.of(key)
    return {
        "name": key.name,
        "models": None if key.models is None else sorted(key.models),
        "priority": key.priority,
        "expires_at": key.expires_at,
        "requests_in_flight": allowance.in_flight,
        "concurrent_requests": key.concurrent_requests,
        "requests_per_minute": key.requests_per_minute,
        "tokens_per_minute": key.tokens_per_minute,
        "budgets": described_budgets(allowance.budgets()),
        **allowance.left(allowances.clock()),
    }


def _with_siblings(row: dict[str, Any], siblings: SiblingAnswers) -> dict[str, Any]:
    """``row`` for all workers: requests in flight are summed; of each limit, the lowest remainder counts."""
    others = [one[row["name"]] for one in siblings.answers if row["name"] in one]
    in_flight = row["requests_in_flight"] + sum(other["requests_in_flight"] for other in others)
    left = {
        name: None if row[name] is None else min(row[name], *(other[name] for other in others))
        for name in ("requests_left", "tokens_left")
        if others
    }
    return {**row, "requests_in_flight": in_flight, **left}
