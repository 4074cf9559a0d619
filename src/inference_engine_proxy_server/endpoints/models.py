"""`/v1/models` and `/models`: one list of models for the whole fleet, and each of its entries."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request, Response

from inference_engine_proxy_server.access.gate import Access
from inference_engine_proxy_server.backends.base import ModelEntry
from inference_engine_proxy_server.dispatch.leases import Dispatcher
from inference_engine_proxy_server.errors import CapacityError, ClientError
from inference_engine_proxy_server.fleet.fleet import Fleet
from inference_engine_proxy_server.fleet.serving import names_of

__all__ = ["models_router"]


def models_router(dispatcher: Dispatcher, retry_after_seconds: float = 1) -> APIRouter:
    """``GET /v1/models`` and ``GET /v1/models/ID``, also without ``/v1``.

    Args:
        dispatcher: the fleet, and the model of requests that name none.
        retry_after_seconds: when clients should ask again for a model whose backends are down.
    """
    fleet, placement = dispatcher.fleet, dispatcher.placement
    router = APIRouter(tags=["models"])

    @router.get("/v1/models", summary="The models that live backends serve, one entry each")
    @router.get("/models", include_in_schema=False)
    async def list_models(request: Request, response: Response) -> dict[str, Any]:
        _open_to_pages(response)
        entries: dict[str, ModelEntry] = {}
        for backend in fleet.snapshot().live:
            for entry in backend.serving.models:
                if _permits(request, entry):
                    entries.setdefault(entry["id"], entry)
        # llama.cpp's web UI names no model, and takes the first one for the model that answers it.
        usual = placement.model_of_unnamed
        ordered = sorted(entries.values(), key=lambda entry: usual not in names_of(entry))
        return {"object": "list", "data": [_in_dialect(request, entry) for entry in ordered]}

    @router.get("/v1/models/{model:path}", summary="One model that live backends serve")
    @router.get("/models/{model:path}", include_in_schema=False)
    async def retrieve_model(request: Request, response: Response, model: str) -> Any:
        if not model:
            return await list_models(request, response)
        _open_to_pages(response)
        entries = [entry for backend in fleet.snapshot().live for entry in backend.serving.models]
        # Ids take precedence over aliases.
        for entry in sorted(entries, key=lambda entry: entry["id"] != model):
            if model in names_of(entry) and _permits(request, entry):
                return _in_dialect(request, entry)
        raise _missing(fleet, model, retry_after_seconds)

    return router


def _open_to_pages(response: Response) -> None:
    # As with engines, web pages of any origin may read the list.
    response.headers["access-control-allow-origin"] = "*"
    response.headers["access-control-expose-headers"] = "x-request-id"


def _permits(request: Request, entry: ModelEntry) -> bool:
    access: Access | None = request.state.access
    return access is None or any(access.permits(name) for name in names_of(entry))


def _in_dialect(request: Request, entry: ModelEntry) -> ModelEntry:
    """``entry`` as the engine wrote it, with the members that Anthropic's clients expect if one of them asks."""
    if "anthropic-version" not in request.headers:
        return entry
    created = entry.get("created")
    created_at = datetime.fromtimestamp(created if isinstance(created, int) and 0 <= created < 2**32 else 0, UTC)
    return {"type": "model", "display_name": entry["id"], "created_at": created_at.isoformat()} | dict(entry)


def _missing(fleet: Fleet, model: str, retry_after_seconds: float) -> CapacityError | ClientError:
    backends = fleet.snapshot().backends
    if any(not one.models_known or (not one.is_live and model in one.serving.model_ids) for one in backends):
        message = "No backend that may serve this model is available."
        return CapacityError(message, retry_after_seconds=retry_after_seconds)
    message = f"The model '{model[:200]}' is not served here, or not permitted for this key."
    return ClientError(message, status=404, code="model_not_found")
