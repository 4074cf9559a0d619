"""Forwards requests, and continues their streams on another backend when they break."""

from __future__ import annotations

from collections.abc import Collection, Coroutine

from inference_engine_proxy_server.dispatch.assembling_forwarder import AssemblingForwarder
from inference_engine_proxy_server.dispatch.forwarder import Forwarder
from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.dispatch.stream_relay import StreamRelay
from inference_engine_proxy_server.errors import BackendError
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.fleet import Fleet
from inference_engine_proxy_server.requests.content import all_members
from inference_engine_proxy_server.resume.dialects import DIALECTS
from inference_engine_proxy_server.resume.resumable_stream import ResumableStream
from inference_engine_proxy_server.telemetry.request_metrics import RequestMetrics

__all__ = ["ResumingForwarder"]


class ResumingForwarder:
    """A forwarder that resumes streams. See :mod:`.resume.rules` for the streams that are excluded.

    Args:
        forwarder: forwards all other requests.
        relay: relays and continues the streams.
        assembling: forwards completions that are not streamed; ``None`` if they are forwarded as they are.
        fleet: the backends.
        metrics: counts broken streams that are not resumed.
    """

    def __init__(
        self,
        forwarder: Forwarder,
        relay: StreamRelay,
        assembling: AssemblingForwarder | None,
        fleet: Fleet,
        metrics: RequestMetrics,
    ) -> None:
        self._forwarder = forwarder
        self._relay = relay
        self._assembling = assembling
        self._assembled: Collection[Backend] = () if assembling is None else assembling.backends
        self._fleet = fleet
        self._metrics = metrics

    def forward(self, request: ProxiedRequest) -> Coroutine[None, None, None]:
        """Forward ``request``, see :meth:`.Forwarder.forward`."""
        if request.head.path in DIALECTS:
            if request.content.is_streamed:
                if self._relay.may_resume(request):
                    return self._forward_stream(request)
            elif self._assembled and self._assembling is not None:
                return self._assembling.forward(request)
        return self._forwarder.forward(request)

    async def _forward_stream(self, request: ProxiedRequest) -> None:
        members = all_members(request.body) or {}
        dialect = DIALECTS[request.head.path]
        rule = dialect.broken_rule(members)
        if rule is not None:
            await self._forward_unresumed(request, rule)
            return
        request.sink = stream = ResumableStream(request, dialect, members, self._fleet.clock)
        try:
            await self._relay.relay(request, stream)
        finally:
            request.sink = None
            stream.close()

    async def _forward_unresumed(self, request: ProxiedRequest, rule: str) -> None:
        try:
            await self._forwarder.forward(request)
        except BackendError:
            if not request.awaits_reply:
                self._metrics.count_unresumed(rule)
                request.watch.not_resumed(request.backend or "", rule)
            raise
