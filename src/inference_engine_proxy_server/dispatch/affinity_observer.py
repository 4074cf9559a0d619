"""Learns from a reply which backend holds the resource that the request names or creates."""

from __future__ import annotations

from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.requests.resource_names import name_of_completion, name_of_response
from inference_engine_proxy_server.routing.affinity import Affinity, AffinityTable
from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.reply_observer import ReplyObserver

__all__ = ["AffinityObserver"]


class AffinityObserver(ReplyObserver):
    """Reads the first block of a reply.

    Args:
        table: stores what the observer learns.
        exchange: the request; its reply has not begun.
        affinity: the request's affinity.
        backend: sends the reply.
        owner: name of the request's key; ``None`` without a key.
    """

    __slots__ = ("_affinity", "_backend", "_exchange", "_owner", "_resource", "_table")

    def __init__(
        self, table: AffinityTable, exchange: Exchange, affinity: Affinity, backend: Backend, owner: str | None
    ) -> None:
        self._table = table
        self._exchange = exchange
        self._affinity = affinity
        self._backend = backend
        self._owner = owner
        self._resource = None if affinity.deletes else affinity.resource

    def begin(self, block: bytes) -> None:
        """A successful reply proves that the backend holds the resource."""
        if self._exchange.status >= 400:
            return
        if self._resource is not None:
            self._table.remember(self._resource, self._backend)
        created = name_of_response(block) if self._affinity.creates_response else None
        if self._affinity.creates_completion:
            created = name_of_completion(block)
        if created is not None:
            self._table.remember(created, self._backend, self._owner)
