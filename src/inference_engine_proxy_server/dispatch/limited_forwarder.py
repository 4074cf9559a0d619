"""Forwards requests within the limits of their API keys."""

from __future__ import annotations

from inference_engine_proxy_server.access.key_limits import KeyLimits
from inference_engine_proxy_server.dispatch.ownership import Ownership
from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.dispatch.renaming_forwarder import RenamingForwarder
from inference_engine_proxy_server.requests.destinations import Destination, is_web_ui

__all__ = ["LimitedForwarder"]


class LimitedForwarder:
    """A forwarder for proxies whose clients need keys.

    Args:
        limits: enforces the limits of keys.
        ownership: knows which key created a backend-local resource.
        forwarder: forwards the permitted requests.
    """

    def __init__(self, limits: KeyLimits, ownership: Ownership, forwarder: RenamingForwarder) -> None:
        self._limits = limits
        self._ownership = ownership
        self._forwarder = forwarder

    async def forward(self, request: ProxiedRequest) -> None:
        """Forward ``request`` if its key permits it, see :meth:`.Forwarder.forward`.

        Raises:
            ProxyError: the key does not permit the request, or it cannot be served.
        """
        head, access = request.head, request.access
        if access is None and head.is_preflight:  # no backend needs to see it
            request.pass_preflight()
            return
        if access is not None and (not is_web_ui(head.method, head.path) or head.destination is Destination.WEBSOCKET):
            request.model = self._limits.begin(request, access)
            await self._ownership.check(request, access)
        await self._forwarder.forward(request)
