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
from inference_engine_proxy_server.resume.continuation import continued, tokens_left, wants_usage
from inference_engine_proxy_server.resume.resumable_stream import ResumableStream
from inference_engine_proxy_server.resume.rules import MOST_RESUMES, PATHS, broken_rule, problem_of
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
            if isinstance(request, ProxiedRequest) and self._can_be_moved(request):
                connection.give_up(RequestMoved("The stream moves to another backend."))

    def _can_be_moved(self, request: ProxiedRequest) -> bool:
        stream = request.sink
        if stream is None or not stream.has_delivered:
            return False
        excluded = self._excluded(request, {}, _CANNOT_CONTINUE)
        if stream.is_at_seam:  # the continuation has not delivered anything yet
            return self._forwarder.has_other(request, excluded)
        stream.transcript.read()
        left = tokens_left(stream.members, stream.transcript.text_events)
        if stream.transcript.finish_reason is not None or (left is not None and left <= 0):
            return False
        return self._broken_rule(request, stream.transcript, excluded, is_over=False, wants_usage=False) is None

    def forward(self, request: ProxiedRequest) -> Coroutine[None, None, None]:
        """Forward ``request``, see :meth:`.Forwarder.forward`."""
        head = request.head
        if head.path in PATHS and request.content.is_streamed:
            wish = wants_resume(head.passed_on)
            if wish or (wish is None and not self._only_on_request):
                return self._forward_stream(request)
        return self._forwarder.forward(request)

    async def _forward_stream(self, request: ProxiedRequest) -> None:
        members = all_members(request.body) or {}
        rule = broken_rule(members)
        if rule is not None:
            await self._forward_unresumed(request, rule)
            return
        request.sink = stream = ResumableStream(request, members, self._fleet.clock)
        try:
            await self._relay(request, stream, members)
        finally:
            request.sink = None
            stream.close()

    async def _relay(self, request: ProxiedRequest, stream: ResumableStream, members: Members) -> None:
        """Relay a stream, and continue it as often as it breaks and the rules allow."""
        excluded: dict[Backend, BackendError] = {}
        while (error := await self._attempt(request, stream, excluded)) is not None:
            stream.transcript.read()
            excluded = self._excluded(request, excluded, error)
            left = tokens_left(members, stream.transcript.text_events)
            is_over = stream.transcript.finish_reason is not None or (left is not None and left <= 0)
            rule = self._broken_rule(
                request, stream.transcript, excluded, is_over=is_over, wants_usage=wants_usage(members)
            )
            if rule is not None:
                self._give_up(request, stream, rule)
                if stream.is_cut:
                    return
                try:
                    raise error
                finally:
                    del error, excluded  # its traceback refers to this frame: a reference cycle
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

    async def _attempt(
        self, request: ProxiedRequest, stream: ResumableStream, excluded: Mapping[Backend, BackendError]
    ) -> BackendError | None:
        """Relay a reply, and return the error that broke it; ``None`` if it is complete.

        Raises:
            ProxyError: nothing was delivered that could be resumed; or no backend took the continuation.
        """
        try:
            await self._forwarder.forward(request, excluded)
        except ProxyError as error:
            if stream.is_at_seam:
                self._metrics.count_unresumed("not_continued")
            elif isinstance(error, BackendError) and stream.has_delivered:
                return error.with_traceback(None)
            raise
        return BackendBroke("The backend ended its stream before the answer was complete.") if stream.is_cut else None

    def _excluded(
        self, request: ProxiedRequest, excluded: Mapping[Backend, BackendError], error: BackendError
    ) -> dict[Backend, BackendError]:
        """The backends that cannot continue the stream: those on which it failed, and those without its model."""
        # A backend that lost the stream to a drain has not failed.
        failed = [one for one, reason in excluded.items() if not isinstance(reason, RequestMoved)]
        grown: dict[Backend, BackendError] = dict.fromkeys(failed, _CANNOT_CONTINUE)
        broken = next((one for one in self._fleet.backends if one.url == request.backend), None)
        if broken is None:  # it has left the fleet
            return dict.fromkeys(self._fleet.backends, _CANNOT_CONTINUE)
        grown[broken] = error
        for backend in self._fleet.backends:
            if backend not in grown and not backend.serving.continues(broken.serving, request.model):
                grown[backend] = _CANNOT_CONTINUE
        return grown

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
        request.body = continued(members, transcript.text, transcript.text_events)
        comment = b": resumed on another backend after %b\n\n" % error.code.encode() if self._sends_comments else b""
        stream.resume(comment)
