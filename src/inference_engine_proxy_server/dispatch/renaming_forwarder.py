"""Forwards requests under the names and with the parameters that the operator defines for their models."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Protocol

from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.errors import ClientError
from inference_engine_proxy_server.models.catalog import Meaning, ModelCatalog, NamedModel
from inference_engine_proxy_server.models.live_catalog import LiveCatalog
from inference_engine_proxy_server.models.rewriting import Rewriting, gets_default_model
from inference_engine_proxy_server.wire.request_head import RequestHead

__all__ = ["Forward", "RenamingForwarder", "rewrite"]

Forward = Callable[[ProxiedRequest], Coroutine[None, None, None]]
"""Forwards a request, see :meth:`.Forwarder.forward`."""


class _Fallbacks(Protocol):
    """Forwards requests whose model has fallbacks."""

    def forward(self, request: ProxiedRequest, name: str, meaning: Meaning) -> Coroutine[None, None, None]:
        """Forward ``request`` to the first model that serves it."""


class RenamingForwarder:
    """A forwarder for fleets whose operator defines names or parameters of models.

    Args:
        catalog: the names.
        is_served: whether a backend serves a model of a name.
        forward: forwards the requests.
        fallbacks: forwards those whose model has fallbacks.

    Attributes:
        forward: forwards a request. While the catalog is empty, it is that of the other forwarder, so that nothing is
            paid for this one.
    """

    forward: Forward
    _catalog: ModelCatalog
    _by_name: Mapping[str, NamedModel]  # the catalog's: most requests need nothing else of it

    def __init__(
        self, catalog: LiveCatalog, is_served: Callable[[str], bool], forward: Forward, fallbacks: _Fallbacks
    ) -> None:
        self._is_served = is_served
        self._next = forward
        self._fallbacks = fallbacks
        catalog.subscribe(self._use)

    def _use(self, catalog: ModelCatalog) -> None:
        self._catalog = catalog
        self._by_name = catalog.by_name
        self._has_patterns = catalog.has_patterns
        self.forward = self._next if catalog.is_empty else self._forward

    def _forward(self, request: ProxiedRequest) -> Coroutine[None, None, None]:
        name = request.model
        if name is None:
            name = request.model = request.content.model
        named = self._by_name.get(name or "")
        if named is None:
            return self._forward_unlisted(request, name) if name is None or self._has_patterns else self._next(request)
        return self._forward_rewritten(request, name or "", named)

    def _forward_unlisted(self, request: ProxiedRequest, name: str | None) -> Coroutine[None, None, None]:
        """Forward a request whose name a pattern may match, or that names no model."""
        catalog, head = self._catalog, request.head
        if name is not None:
            named = catalog.find(name, self._is_served)
            if named is not None:
                return self._forward_rewritten(request, name, named)
        elif catalog.default is not None and gets_default_model(head.path, head.passed_on, request.body):
            return self._forward_rewritten(request, catalog.default.name, catalog.default)
        return self._next(request)

    def _forward_rewritten(self, request: ProxiedRequest, name: str, meaning: Meaning) -> Coroutine[None, None, None]:
        if meaning.fallbacks:
            return self._fallbacks.forward(request, name, meaning)
        try:
            rewrite(request, request.head, request.body, meaning.model, meaning.rewriting)
        except ClientError as error:
            return _failed(error)
        if name != meaning.model:
            request.alias = name
        return self._next(request)


async def _failed(error: ClientError) -> None:
    try:
        raise error
    finally:
        del error  # its traceback refers to this frame: a reference cycle


def rewrite(request: ProxiedRequest, head: RequestHead, body: bytes, model: str, rewriting: Rewriting) -> None:
    """Let ``request`` name ``model``, with the changes that belong to it.

    Args:
        head, body: of the client.
    """
    target = rewriting.target(head.target)
    if body:
        body = rewriting.body(head.path, head.passed_on, body)
    changed = head if target == head.target else head.with_target(target)
    request.rewrite(changed, body, model, has_new_limit=rewriting.changes_limit)
