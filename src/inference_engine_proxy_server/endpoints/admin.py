"""`/admin`: what operators ask; the gate lets nobody in without ADMIN_KEY."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from inference_engine_proxy_server.access.allowances import Allowances
from inference_engine_proxy_server.access.key_ring import KeyRing
from inference_engine_proxy_server.api_keys import ApiKey

__all__ = ["admin_router"]


def admin_router(ring: KeyRing | None, allowances: Allowances) -> APIRouter:
    """The operators' endpoints over the keys of clients; ``None``: there are none."""
    router = APIRouter(prefix="/admin", tags=["admin"])

    @router.get(
        "/keys",
        summary="The keys of clients: what each may do and has left, never its secret",
        responses={401: {}, 404: {"description": "ADMIN_KEY is not set"}},
    )
    async def keys() -> dict[str, Any]:
        return {"keys": [_described(key, allowances) for key in ring or ()]}

    return router


def _described(key: ApiKey, allowances: Allowances) -> dict[str, Any]:
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
