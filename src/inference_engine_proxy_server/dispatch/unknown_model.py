"""Explains to clients why no backend serves the model that they name."""

from __future__ import annotations

from collections.abc import Sequence

from inference_engine_proxy_server.dispatch.ollama import explained, is_ollama_path
from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.errors import ClientError
from inference_engine_proxy_server.fleet.listed_models import ListedModels

__all__ = ["Explanations", "model_missing"]

_SHOWN = 200  # characters of a model name in an error


class Explanations:
    """Adds to errors about the request what helps its client.

    Args:
        listed: the names of models.
    """

    def __init__(self, listed: ListedModels) -> None:
        self._listed = listed

    def of(self, error: ClientError, request: ProxiedRequest) -> ClientError:
        """``error``, the reason why no backend gets ``request``, explained."""
        name = request.alias or request.model
        if error.code == "model_not_found" and name is not None:
            similar = self._listed.similar(name, request.access)
            means = request.model if request.alias is not None else None
            error = model_missing(f"The model {_quoted(name)}{_meaning(means)} is not served here.", similar)
        return explained(error) if is_ollama_path(request.head.path) else error


def model_missing(message: str, similar: Sequence[str]) -> ClientError:
    """A 404 with ``message`` that suggests the ``similar`` names."""
    if similar:
        message += f" Did you mean {' or '.join(map(_quoted, similar))}?"
    return ClientError(message, status=404, code="model_not_found")


def _quoted(name: str) -> str:
    return f"'{name[:_SHOWN]}'"


def _meaning(model: str | None) -> str:
    return "" if model is None else f", which means {_quoted(model)},"
