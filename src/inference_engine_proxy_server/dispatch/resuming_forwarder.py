"""Forwards requests, and continues their streams on another backend when they break."""

from __future__ import annotations

import logging
from collections.abc import Coroutine, Mapping

import msgspec

from inference_engine_proxy_server.dispatch.forwarder import Forwarder
from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.errors import BackendBroke, BackendError, BackendLacks, ProxyError, RequestMoved
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.fleet import Fleet, FleetObserver
from inference_engine_proxy_server.requests.content import all_members
from inference_engine_proxy_server.requests.headers import wants_resume
from inference_engine_proxy_server.resume.dialects import DIALECTS
from inference_engine_proxy_server.resume.resumable_stream import ResumableStream
from inference_engine_proxy_server.resume.rules import MOST_RESUMES, problem_of
from inference_engine_proxy_server.resume.transcript import Transcript
from inference_engine_proxy_server.telemetry.request_metrics import RequestMetrics

__all__ = ["ResumingForwarder"]

logger = logging.getLogger(__name__)

_CANNOT_CONTINUE = BackendLacks("The backend cannot continue the stream.")

Members = Mapping[str, msgspec.Raw]


class ResumingForwarder(FleetObserver):
    """A forwarder that resumes streams. See :mod:`.resume.rules` for the streams that are excluded.

    Args:
        forwarder: makes the attempts.
        fleet: the backends.
        metrics: counts resumed streams, and broken ones that are not resumed.
        only_on_request: only streams with the header ``X-Stream-Resume: on`` are resumed.
        sends_comments: whether a comment in the stream tells the client where it was resumed.
    """

    def __init__(
        self,
        forwarder: Forwarder,
        fleet: Fleet,
        metrics: RequestMetrics,
        *,
        only_on_request: bool,
        sends_comments: bool,
    ) -> None:
        self._forwarder = forwarder
        self._fleet = fleet
        self._metrics = metrics
        self._only_on_request = only_on_request
        self._sends_comments = sends_comments
        fleet.subscribe(self)

    def on_stuck(self, backend: Backend) -> None:
        """Continue the streams of ``backend`` elsewhere, as far as the rules allow. The others stay."""
        for connection, request in backend.connections.streaming():
            if isinstance(request, ProxiedRequest) and self._can_be_moved(request, backend):
                connection.give_up(RequestMoved("The stream moves to another backend."))

    def _can_be_moved(self, request: ProxiedRequest, backend: Backend) -> bool:
        stream = request.sink
        if stream is None or not stream.has_delivered:
            return False
        if stream.is_at_seam:  # the continuation has not delivered anything yet
            return not request.losses and self._forwarder.has_other(request, (*stream.excluded, backend))
        excluded = self._excluded(request, _CANNOT_CONTINUE)
        stream.transcript.read()
        left = stream.dialect.tokens_left(stream.members, stream.transcript.text_events)
        if stream.transcript.finish_reason is not None or (left is not None and left <= 0):
            return False
        return self._broken_rule(request, stream.transcript, excluded, is_over=False, wants_usage=False) is None

    def forward(self, request: ProxiedRequest) -> Coroutine[None, None, None]:
        """Forward ``request``, see :meth:`.Forwarder.forward`."""
        head = request.head
        if head.path in DIALECTS and request.content.is_streamed:
            wish = wants_resume(head.passed_on)
            if wish or (wish is None and not self._only_on_request):
                return self._forward_stream(request)
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
            await self._relay(request, stream, members)
        finally:
            request.sink = None
            stream.close()

    async def _relay(self, request: ProxiedRequest, stream: ResumableStream, members: Members) -> None:
        """Relay a stream, and continue it as often as it breaks and the rules allow."""
        while (error := await self._attempt(request, stream)) is not None:
            stream.transcript.read()
            stream.excluded = self._excluded(request, error)
            left = stream.dialect.tokens_left(members, stream.transcript.text_events)
            is_over = stream.transcript.finish_reason is not None or (left is not None and left <= 0)
            wants_usage = stream.dialect.wants_usage(members)
            rule = self._broken_rule(
                request, stream.transcript, stream.excluded, is_over=is_over, wants_usage=wants_usage
            )
            if rule is not None:
                self._give_up(request, stream, rule)
                if stream.is_cut:
                    return
                try:
                    raise error
                finally:
                    stream.excluded = {}
                    del error  # its traceback refers to this frame: a reference cycle
            if is_over:
                stream.complete()
                return
            self._resume(request, stream, members, error)

    async def _forward_unresumed(self, request: ProxiedRequest, rule: str) -> None:
        try:
            await self._forwarder.forward(request)
        except BackendError:
            if not request.awaits_reply:
                self._metrics.count_unresumed(rule)
            raise

    async def _attempt(self, request: ProxiedRequest, stream: ResumableStream) -> BackendError | None:
        """Relay a reply, and return the error that broke it; ``None`` if it is complete.

        Raises:
            ProxyError: nothing was delivered that could be resumed; or no backend took the continuation.
        """
        try:
            await self._forwarder.forward(request, stream.excluded)
        except ProxyError as error:
            if stream.is_at_seam:
                self._metrics.count_unresumed("not_continued")
            elif isinstance(error, BackendError) and stream.has_delivered:
                return error.with_traceback(None)
            raise
        return BackendBroke("The backend ended its stream before the answer was complete.") if stream.is_cut else None

    def _excluded(self, request: ProxiedRequest, error: BackendError) -> dict[Backend, BackendError]:
        """The backends that cannot continue the stream: the one on which it broke, and those without its model.

        Backends on which it broke before may have it again: those that have not recovered get no requests at all.
        """
        broken = next((one for one in self._fleet.backends if one.url == request.backend), None)
        if broken is None:  # it has left the fleet
            return dict.fromkeys(self._fleet.backends, _CANNOT_CONTINUE)
        api, model = DIALECTS[request.head.path].api, request.model
        others = (one for one in self._fleet.backends if not one.serving.continues(broken.serving, model, api))
        return {**dict.fromkeys(others, _CANNOT_CONTINUE), broken: error}

    def _broken_rule(
        self,
        request: ProxiedRequest,
        transcript: Transcript,
        excluded: Mapping[Backend, BackendError],
        *,
        is_over: bool,
        wants_usage: bool,
    ) -> str | None:
        if (problem := problem_of(transcript)) is not None:
            return problem
        if is_over:
            return "no_usage" if wants_usage and not transcript.has_usage else None
        if request.resumes >= MOST_RESUMES:
            return "resumes"
        return None if self._forwarder.has_other(request, excluded) else "no_other_backend"

    def _give_up(self, request: ProxiedRequest, stream: ResumableStream, rule: str) -> None:
        """Relay what was withheld; a stream that its engine has ended ends here, too."""
        self._metrics.count_unresumed(rule)
        logger.warning("request %s: its stream broke and is not resumed: %s", request.request_id, rule)
        if stream.is_cut:
            stream.end_as_received()
        else:
            stream.give_up()

    def _resume(self, request: ProxiedRequest, stream: ResumableStream, members: Members, error: BackendError) -> None:
        """Prepare the next attempt, which continues the stream."""
        transcript = stream.transcript
        logger.warning(
            "request %s: its stream broke after %d tokens (%s) and continues on another backend",
            request.request_id,
            transcript.text_events,
            error.code,
        )
        self._metrics.count_resume(error.code)
        request.resumes += 1
        request.body = stream.dialect.continued(members, transcript)
        comment = b": resumed on another backend after %b\n\n" % error.code.encode() if self._sends_comments else b""
        stream.resume(comment)
