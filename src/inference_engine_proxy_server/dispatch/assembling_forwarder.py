"""Forwards requests without ``stream`` as streams, and assembles their replies.

A busy llama.cpp computes a reply to its end even if the client has disconnected, unless it streams (build 11549 looks
for a disconnect only after a second without a result of any request). A stream also shows progress, and can be
continued on another backend.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from inference_engine_proxy_server.dispatch.forwarder import Forwarder
from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.dispatch.stream_relay import StreamRelay
from inference_engine_proxy_server.errors import BackendBroke, BackendError, StreamNotContinued
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.fleet import Fleet, FleetObserver
from inference_engine_proxy_server.requests.content import all_members
from inference_engine_proxy_server.resume.assembled_reply import AssembledReply
from inference_engine_proxy_server.resume.assembly_rules import ASSEMBLED_PATHS, can_be_assembled
from inference_engine_proxy_server.resume.dialects import DIALECTS
from inference_engine_proxy_server.resume.resumable_stream import ResumableStream
from inference_engine_proxy_server.resume.rules import MOST_RESUMES
from inference_engine_proxy_server.telemetry.request_metrics import RequestMetrics

__all__ = ["AssemblingForwarder"]

logger = logging.getLogger(__name__)


class AssemblingForwarder(FleetObserver):
    """A forwarder for requests without ``stream``.

    If the stream breaks and is not continued, or leaves a doubt about the reply, the request is sent again, unchanged.

    Args:
        forwarder: sends the requests that are not sent as streams.
        relay: relays and continues the streams.
        fleet: the backends.
        metrics: counts the replies.

    Attributes:
        backends: those whose replies can be assembled.
    """

    def __init__(self, forwarder: Forwarder, relay: StreamRelay, fleet: Fleet, metrics: RequestMetrics) -> None:
        self.backends: set[Backend] = set()
        self._unlike: set[Backend] = set()  # their events are not those that the proxy knows
        self._forwarder = forwarder
        self._relay = relay
        self._fleet = fleet
        self._metrics = metrics
        fleet.subscribe(self)

    def on_replaced(self, backends: Sequence[Backend]) -> None:
        """See :class:`FleetObserver`."""
        self.backends.intersection_update(backends)
        self._unlike.intersection_update(backends)

    def on_reported(self, backend: Backend) -> None:
        """See :class:`FleetObserver`."""
        if backend.serving.shows_replies_in_streams and backend not in self._unlike:
            self.backends.add(backend)
        else:
            self.backends.discard(backend)

    async def forward(self, request: ProxiedRequest) -> None:
        """Forward ``request``, see :meth:`.Forwarder.forward`."""
        body, head = request.body, request.head
        members = all_members(body) if head.path in ASSEMBLED_PATHS and head.method == "POST" else None
        if members is None or not can_be_assembled(members):
            await self._forwarder.forward(request)
            return
        reply = AssembledReply(request, self.backends)
        request.sink = stream = ResumableStream(request, DIALECTS[head.path], members, self._fleet.clock, reply)
        failure: BackendError = BackendBroke("The backend ended its reply before it was complete.")
        try:
            await self._relay.relay(request, stream)
        except BackendError as error:
            if not reply.begun:
                raise
            failure = error.with_traceback(None)
        finally:
            request.sink = None
            stream.close()
        if request.done:
            if reply.begun:
                self._metrics.count_assembly("assembled")
            return
        request.body = body
        try:
            await self._end_or_repeat(request, reply, failure)
        finally:
            del failure  # its traceback refers to this frame: a reference cycle

    async def _end_or_repeat(self, request: ProxiedRequest, reply: AssembledReply, failure: BackendError) -> None:
        """Send a request unchanged whose reply could not be assembled, or end it if it must not be repeated."""
        doubt, status = reply.assembly.doubt, reply.error_status()
        excluded: dict[Backend, BackendError] = {}
        if doubt is None:
            can_repeat = self._can_repeat(request, failure)
            if status is not None and (status < 500 or not can_repeat):
                reply.send_error(status)
                return
            if not can_repeat:
                try:
                    raise failure
                finally:
                    del failure  # as above
            request.losses += 1
            serving = [one for one in self._fleet.backends if one.url == request.backend]
            if status is None or self._forwarder.has_other(request, serving):
                excluded = dict.fromkeys(serving, failure)
        self._note(request, doubt or "broken")
        try:
            await self._forwarder.forward(request, excluded)
        finally:
            excluded.clear()  # the traceback of its error refers to it, too
            del failure

    def _can_repeat(self, request: ProxiedRequest, failure: BackendError) -> bool:
        if request.losses + request.resumes >= MOST_RESUMES:
            return False
        return isinstance(failure, StreamNotContinued) or self._forwarder.may_repeat(request, failure)

    def _note(self, request: ProxiedRequest, reason: str) -> None:
        """Log and count why a request is sent again."""
        self._metrics.count_assembly(reason)
        request.watch.repeated(reason)
        logger.info("request %s is sent again without a stream: %s", request.request_id, reason)
        if reason != "unknown_members":
            return
        for backend in self.backends:
            if backend.url == request.backend:
                self._unlike.add(backend)
                logger.warning("replies of backend %s are no longer assembled: its events are unknown", backend.url)
        self.backends -= self._unlike
