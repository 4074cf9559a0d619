"""Forwards requests under the names and with the parameters that the operator defines for their models."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Protocol

from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.models.catalog import ModelCatalog, NamedModel
from inference_engine_proxy_server.models.live_catalog import LiveCatalog
from inference_engine_proxy_server.models.rewriting import Rewriting, gets_default_model

__all__ = ["RenamingForwarder"]


class _Forwarder(Protocol):
    """Forwards what this module has rewritten."""

    def forward(self, request: ProxiedRequest) -> Coroutine[None, None, None]:
        """Forward ``request``."""


class RenamingForwarder:
    """A forwarder for fleets whose operator defines names or parameters of models.

    Args:
        catalog: the names.
        is_served: whether a backend serves a model of a name.
        forwarder: forwards the requests.

    Attributes:
        forward: forwards a request, see :meth:`.Forwarder.forward`. While the catalog is empty, it is the method of the
            other forwarder, so that nothing is paid for this one.
    """

    forward: Callable[[ProxiedRequest], Coroutine[None, None, None]]
    _catalog: ModelCatalog
    _by_name: Mapping[str, NamedModel]  # the catalog's: most requests need nothing else of it

    def __init__(self, catalog: LiveCatalog, is_served: Callable[[str], bool], forwarder: _Forwarder) -> None:
        self._is_served = is_served
        self._next = forwarder.forward
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
        return self._forward_rewritten(request, name or "", named.model, named.rewriting)

    def _forward_unlisted(self, request: ProxiedRequest, name: str | None) -> Coroutine[None, None, None]:
        """Forward a request whose name a pattern may match, or that names no model."""
        catalog, head = self._catalog, request.head
        if name is not None:
            named = catalog.find(name, self._is_served)
            if named is not None:
                return self._forward_rewritten(request, name, named.model, named.rewriting)
        elif catalog.default is not None and gets_default_model(head.path, head.passed_on, request.body):
            default = catalog.default
            return self._forward_rewritten(request, default.name, default.model, default.rewriting)
        return self._next(request)

    async def _forward_rewritten(self, request: ProxiedRequest, name: str, model: str, rewriting: Rewriting) -> None:
        head, body = request.head, request.body
        target = rewriting.target(head.target)
        if body:
            body = rewriting.body(head.path, head.passed_on, body)
        changed = head if target == head.target else head.with_target(target)
        request.rewrite(changed, body, model, has_new_limit=rewriting.changes_limit)
        if name != model:
            request.alias = name
        await self._next(request)
