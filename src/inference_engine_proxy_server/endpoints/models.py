"""`/v1/models` and `/models`: one list of models for the whole fleet, and each of its entries."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Request, Response

from inference_engine_proxy_server.backends.base import ModelEntry
from inference_engine_proxy_server.dispatch.leases import Dispatcher
from inference_engine_proxy_server.dispatch.unknown_model import model_missing
from inference_engine_proxy_server.errors import CapacityError, ClientError
from inference_engine_proxy_server.fleet.fleet import Fleet
from inference_engine_proxy_server.fleet.listed_models import ListedModels
from inference_engine_proxy_server.fleet.serving import names_of

__all__ = ["models_router"]


def models_router(dispatcher: Dispatcher, listed: ListedModels, retry_after_seconds: float = 1) -> APIRouter:
    """``GET /v1/models`` and ``GET /v1/models/ID``, also without ``/v1``.

    Args:
        dispatcher: the fleet, and the model of requests that name none.
        listed: the models.
        retry_after_seconds: when clients should ask again for a model whose backends are down.
    """
    fleet, placement = dispatcher.fleet, dispatcher.placement
    router = APIRouter(tags=["models"])

    @router.get("/v1/models", summary="The models that live backends serve, and their aliases")
    @router.get("/models", include_in_schema=False)
    async def list_models(request: Request, response: Response) -> dict[str, Any]:
        _open_to_pages(response)
        entries = listed.entries(request.state.access)
        # llama.cpp's web UI names no model, and takes the first one for the model that answers it.
        name, usual = listed.default_name, placement.model_of_unnamed
        ordered = sorted(entries, key=lambda entry: (entry["id"] != name, usual not in names_of(entry)))
        return {"object": "list", "data": [_in_dialect(request, entry) for entry in ordered]}

    @router.get("/v1/models/{model:path}", summary="One model that live backends serve")
    @router.get("/models/{model:path}", include_in_schema=False)
    async def retrieve_model(request: Request, response: Response, model: str) -> Any:
        if not model:
            return await list_models(request, response)
        _open_to_pages(response)
        entry = listed.find(model, request.state.access)
        if entry is None:
            raise _missing(fleet, model, listed.similar(model, request.state.access), retry_after_seconds)
        return _in_dialect(request, entry)

    return router


def _open_to_pages(response: Response) -> None:
    # As with engines, web pages of any origin may read the list.
    response.headers["access-control-allow-origin"] = "*"
    response.headers["access-control-expose-headers"] = "x-request-id"


def _in_dialect(request: Request, entry: ModelEntry) -> ModelEntry:
    """``entry`` as the engine wrote it, with the members that Anthropic's clients expect if one of them asks."""
    if "anthropic-version" not in request.headers:
        return entry
    created = entry.get("created")
    created_at = datetime.fromtimestamp(created if isinstance(created, int) and 0 <= created < 2**32 else 0, UTC)
    return {"type": "model", "display_name": entry["id"], "created_at": created_at.isoformat()} | dict(entry)


def _missing(
    fleet: Fleet, model: str, similar: Sequence[str], retry_after_seconds: float
) -> CapacityError | ClientError:
    backends = fleet.snapshot().backends
    is_unknown = any(not one.models_known or (not one.is_live and model in one.serving.model_ids) for one in backends)
    if is_unknown or not backends:  # sources may find backends later
        message = "No backend that may serve this model is available."
        return CapacityError(message, retry_after_seconds=retry_after_seconds)
    return model_missing(f"The model '{model[:200]}' is not served here, or not permitted for this key.", similar)
