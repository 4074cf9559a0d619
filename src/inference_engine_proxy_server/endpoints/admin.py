"""`/admin`: what operators ask and do; the gate lets nobody in without ADMIN_KEY."""

from __future__ import annotations

import asyncio
import math
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import JSONResponse

from inference_engine_proxy_server.access.allowances import Allowances
from inference_engine_proxy_server.access.key_ring import KeyRing
from inference_engine_proxy_server.config.api_keys import ApiKey
from inference_engine_proxy_server.dispatch.backend_pool import BackendPool
from inference_engine_proxy_server.endpoints.all_workers import AllWorkers, SiblingAnswers
from inference_engine_proxy_server.endpoints.backend_facts import facts_of
from inference_engine_proxy_server.errors import ClientError
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.routing.decisions import KEPT

__all__ = ["admin_router"]

_LOOK_SECONDS = 0.1  # between two looks whether a backend's last request is over
_RESPONSES: dict[int | str, dict[str, Any]] = {401: {}, 404: {"description": "ADMIN_KEY is not set"}}
_BACKEND_RESPONSES: dict[int | str, dict[str, Any]] = {
    401: {},
    404: {"description": "There is no such backend, or ADMIN_KEY is not set"},
}

_Limit = Annotated[int, Query(ge=1, le=KEPT, description="Most decisions to tell.")]
_WaitSeconds = Annotated[float, Query(ge=0, le=3600, description="Longest wait for its last request to end.")]


def admin_router(pool: BackendPool, ring: KeyRing | None, allowances: Allowances, everybody: AllWorkers) -> APIRouter:
    """The operators' endpoints over the fleet and the keys of clients (``None``: there are none), of ``everybody``."""
    router = APIRouter(prefix="/admin", tags=["admin"])

    @router.get("/keys", summary="The keys of clients: what each may do and has left, never its secret",
                responses=_RESPONSES)  # fmt: skip
    async def keys() -> dict[str, Any]:
        told = await everybody.keys()
        rows = [_with_siblings(_described_key(key, allowances), told) for key in ring or ()]
        return {"keys": rows, **everybody.silence(told)}

    @router.get("/backends", summary="The backends: how each is, and why", responses=_RESPONSES)
    async def backends() -> dict[str, Any]:
        told = await everybody.fleet()
        rows = [_described(backend, pool, told) for backend in pool.backends]
        waiting = pool.line.count + sum(one["waiting"] for one in told.answers)
        return {"backends": rows, "waiting": waiting, **everybody.silence(told)}

    @router.post("/backends/{name:path}/drain", summary="Give a backend no new requests; tells when it may be stopped",
                 responses=_BACKEND_RESPONSES)  # fmt: skip
    async def drain(name: str, wait_seconds: _WaitSeconds = 0) -> dict[str, Any]:
        backend = _find(pool, name)
        everybody.drain(backend, is_draining=True)
        deadline = pool.clock() + wait_seconds
        # Nobody else wants to know, so the end of a request need not tell.
        while backend.all_leases and backend.is_draining and pool.clock() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_SECONDS)
        told = await everybody.fleet_once_drained(backend)
        return {**_described(backend, pool, told), **everybody.silence(told)}

    @router.post("/backends/{name:path}/undrain", summary="Give a drained backend requests again",
                 responses=_BACKEND_RESPONSES)  # fmt: skip
    async def undrain(name: str) -> dict[str, Any]:
        backend = _find(pool, name)
        everybody.drain(backend, is_draining=False)
        told = await everybody.fleet()
        return {**_described(backend, pool, told), **everybody.silence(told)}

    @router.get("/decisions", summary="The latest decisions: which backend got a request, and what was compared",
                responses=_RESPONSES)  # fmt: skip
    async def decisions(limit: _Limit = 20) -> JSONResponse:
        told = await everybody.decisions()
        own = [] if pool.decisions is None else pool.decisions.as_json()
        every = [*own, *(decision for one in told.answers for decision in one["decisions"])]
        newest = sorted(every, key=lambda decision: -decision["at"])[:limit]
        # As it is: FastAPI would look at every number of hundreds of candidates.
        return JSONResponse({"decisions": newest, **everybody.silence(told)})

    return router


def _find(pool: BackendPool, name: str) -> Backend:
    for backend in pool.backends:
        if name in (backend.config.name, backend.url):
            return backend
    names = ", ".join(backend.config.name for backend in pool.backends)
    raise ClientError(f"There is no backend {name[:200]!r}; there are {names}.", status=404, code="no_such_backend")


def _described(backend: Backend, pool: BackendPool, told: SiblingAnswers) -> dict[str, Any]:
    limit = backend.limit
    return {
        "name": backend.config.name,
        "url": backend.url,
        **facts_of(backend, pool.clock()),
        "takes_requests": backend.takes_requests,
        "is_last_choice": backend.is_last_choice,
        "safe_to_stop": backend.is_draining and told.drained(backend.url) and not backend.all_leases,
        "load": backend.load,
        "limit": None if limit == math.inf else limit,
        "weight": backend.config.weight,
        "share": backend.health.share(pool.clock()),
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
        **allowance.left(allowances.clock()),
    }


def _with_siblings(row: dict[str, Any], told: SiblingAnswers) -> dict[str, Any]:
    """``row`` for all workers: what is under way in sum, and what is left where it is least, as each has limits."""
    others = [one[row["name"]] for one in told.answers if row["name"] in one]
    under_way = row["requests_in_flight"] + sum(other["requests_in_flight"] for other in others)
    left = {
        name: None if row[name] is None else min(row[name], *(other[name] for other in others))
        for name in ("requests_left", "tokens_left")
        if others
    }
    return {**row, "requests_in_flight": under_way, **left}
