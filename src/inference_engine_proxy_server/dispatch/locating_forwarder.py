"""Forwards requests for backend-local resources that only another replica may know, after asking for them."""

from __future__ import annotations

from collections.abc import Coroutine

from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.dispatch.renaming_forwarder import Forward
from inference_engine_proxy_server.requests.destinations import Destination
from inference_engine_proxy_server.requests.resource_names import name_in_content, name_in_target
from inference_engine_proxy_server.routing.affinity import AffinityTable

__all__ = ["LocatingForwarder"]


class LocatingForwarder:
    """A forwarder for replicas that share what they know of resources, and whose clients need no keys.

    Args:
        table: asks for resources.
        forward: forwards the requests.
    """

    def __init__(self, table: AffinityTable, forward: Forward) -> None:
        self._table = table
        self._forward = forward

    def forward(self, request: ProxiedRequest) -> Coroutine[None, None, None]:
        """Forward ``request``, see :meth:`.Forwarder.forward`."""
        name = _needed_name(request)
        if name is None or self._table.entry(name) is not None:
            return self._forward(request)
        return self._forward_located(request, name)

    async def _forward_located(self, request: ProxiedRequest, name: bytes) -> None:
        await self._table.find(name)
        await self._forward(request)


def _needed_name(request: ProxiedRequest) -> bytes | None:
    """The resource without which ``request`` cannot be served; ``None`` if it needs none."""
    head = request.head
    if head.destination is Destination.NAMED:
        return name_in_target(head.target)
    if head.destination is Destination.TIED and head.path.endswith("/responses"):
        return name_in_content(request.content)
    return None
