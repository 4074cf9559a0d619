"""What operators' commands about one backend have in common: how they name it, and how long they wait."""

from __future__ import annotations

from typing import Annotated

from fastapi import Query

from inference_engine_proxy_server.errors import ClientError
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.fleet import Fleet

__all__ = ["Move", "WaitSeconds", "find_backend"]

Move = Annotated[bool, Query(description="Whether other backends continue its streams and take its other requests.")]
WaitSeconds = Annotated[float, Query(ge=0, le=3600, description="Longest wait for its last request to end.")]


def find_backend(fleet: Fleet, name: str) -> Backend:
    """The backend with this name or URL.

    Raises:
        ClientError: 404, there is none.
    """
    for backend in fleet.backends:
        if name in (backend.config.name, backend.url):
            return backend
    names = ", ".join(backend.config.name for backend in fleet.backends) or "none"
    raise ClientError(f"There is no backend {name[:200]!r}; there are {names}.", status=404, code="no_such_backend")
