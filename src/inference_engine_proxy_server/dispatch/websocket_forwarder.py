"""Opens WebSockets on backends."""

from __future__ import annotations

from collections.abc import Mapping

from inference_engine_proxy_server.dispatch.forwarder import Forwarder
from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.dispatch.requirements_reader import RequirementsReader
from inference_engine_proxy_server.errors import BackendError, ClientError
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.routing.policies import LEAST_REQUESTS
from inference_engine_proxy_server.routing.requirements import Requirements

__all__ = ["WebSocketForwarder"]

_NONE: Mapping[Backend, BackendError] = {}


class _HandshakeReader(RequirementsReader):
    """Reads WebSocket handshakes, which are requests without a prompt."""

    def read(self, request: ProxiedRequest) -> Requirements:
        """See :meth:`.RequirementsReader.read`."""
        head = request.head
        model = request.model = request.model or request.content.model
        policy = self._placement.policy(model)
        requirements = Requirements(model, policy=LEAST_REQUESTS if policy.reads_prompts else policy)
        return requirements if model else self._placement.without_lacking(requirements, head.method, head.path)


class WebSocketForwarder(Forwarder):
    """A forwarder of WebSocket handshakes.

    A WebSocket has a lease, and occupies a slot of its backend, until its connections end.
    """

    reader = _HandshakeReader

    async def forward(self, request: ProxiedRequest, excluded: Mapping[Backend, BackendError] = _NONE) -> None:
        """Open the WebSocket that ``request`` asks for, and relay it until both sides have ended it.

        Args:
            request: as for :meth:`.Forwarder.forward`.
            excluded: the same.

        Raises:
            ProxyError: no backend can serve the request; or the WebSocket broke.
        """
        self._check_models(request)
        await super().forward(request, excluded)

    def _check_models(self, request: ProxiedRequest) -> None:
        """Reject a key that is limited to some models if its backend serves others: messages may name those."""
        access = request.access
        if access is None or access.key.models is None:
            return
        for backend in self._dispatcher.fleet.backends:
            names = backend.serving.model_ids
            if request.model in names and not names <= access.key.models:
                message = (
                    "This key is limited to certain models, and a backend of this one serves others, too. The proxy "
                    "does not read the messages of a WebSocket, which may name them."
                )
                raise ClientError(message, status=403, code="model_not_permitted")
