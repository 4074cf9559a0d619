"""Relays a stream, and continues it on another backend as often as it breaks and the rules allow."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Literal

from inference_engine_proxy_server.dispatch.forwarder import Forwarder
from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.errors import BackendBroke, BackendError, BackendLacks, ProxyError, RequestMoved
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.fleet import Fleet, FleetObserver
from inference_engine_proxy_server.requests.headers import wants_resume
from inference_engine_proxy_server.resume.continuation import continued, tokens_left, wants_usage
from inference_engine_proxy_server.resume.resumable_stream import ResumableStream
from inference_engine_proxy_server.resume.rules import MOST_RESUMES, broken_rule, problem_of
from inference_engine_proxy_server.telemetry.request_metrics import RequestMetrics

__all__ = ["StreamRelay"]

logger = logging.getLogger(__name__)

_CANNOT_CONTINUE = BackendLacks("The backend cannot continue the stream.")


class StreamRelay(FleetObserver):
    """Relays streams, and continues them.

    Args:
        forwarder: makes the attempts.
        fleet: the backends.
        metrics: counts resumed streams, and broken ones that are not resumed.
        resumes: ``header``: only requests with the header ``X-Stream-Resume: on`` are continued; ``off``: none.
        sends_comments: whether a comment in the stream tells the client where it was resumed.
    """

    def __init__(
        self,
        forwarder: Forwarder,
        fleet: Fleet,
        metrics: RequestMetrics,
        *,
        resumes: Literal["on", "off", "header"],
        sends_comments: bool,
    ) -> None:
        self._forwarder = forwarder
        self._fleet = fleet
        self._metrics = metrics
        self._resumes = resumes
        self._sends_comments = sends_comments
        fleet.subscribe(self)

    def may_resume(self, request: ProxiedRequest) -> bool:
        """Whether the settings and the client want its stream to be continued."""
        if self._resumes == "off":
            return False
        wish = wants_resume(request.head.passed_on)
        return wish or (wish is None and self._resumes == "on")

    async def relay(self, request: ProxiedRequest, stream: ResumableStream) -> None:
        """Relay the stream of ``request``, and continue it.

        An assembled reply may be left open: its stream is not complete, or leaves a doubt.

        Raises:
            ProxyError: the stream broke and is not continued, or no backend took the request.
        """
        excluded: dict[Backend, BackendError] = {}
        while (error := await self._attempt(request, stream, excluded)) is not None:
            stream.transcript.read()
            excluded = self._excluded(request, stream, excluded, error)
            left = tokens_left(stream.members, stream.transcript.text_events)
            is_over = stream.transcript.finish_reason is not None or (left is not None and left <= 0)
            rule = self._broken_rule(request, stream, excluded, is_over=is_over)
            if rule is not None:
                self._give_up(request, stream, rule)
                if stream.is_cut:
                    return
                try:
                    raise error
                finally:
                    del error, excluded  # the error's traceback refers to this frame: a reference cycle
            if is_over:
                stream.complete()
                return
            self._resume(request, stream, error)

    def on_stuck(self, backend: Backend) -> None:
        """Continue the streams of ``backend`` elsewhere, as far as the rules allow. The others stay."""
        for connection, request in backend.connections.streaming():
            if isinstance(request, ProxiedRequest) and self._can_be_moved(request):
                connection.give_up(RequestMoved("The stream moves to another backend."))

    def _can_be_moved(self, request: ProxiedRequest) -> bool:
        stream = request.sink
        if stream is None or not stream.has_delivered:
            return False
        excluded = self._excluded(request, stream, {}, _CANNOT_CONTINUE)
        if stream.is_at_seam:  # the continuation has not delivered anything yet
            return self._forwarder.has_other(request, excluded)
        stream.transcript.read()
        left = tokens_left(stream.members, stream.transcript.text_events)
        if stream.transcript.finish_reason is not None or (left is not None and left <= 0):
            return False
        if self._broken_rule(request, stream, excluded, is_over=False) is None:
            return True
        # A client that has received nothing of its reply may get another one.
        is_repeatable = stream.assembled is not None and not request.losses and not request.resumes
        return is_repeatable and self._forwarder.has_other(request, self._serving(request))

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

    def _serving(self, request: ProxiedRequest) -> list[Backend]:
        """The backend of the latest attempt; empty if it has left the fleet."""
        return [backend for backend in self._fleet.backends if backend.url == request.backend]

    def _excluded(
        self,
        request: ProxiedRequest,
        stream: ResumableStream,
        excluded: Mapping[Backend, BackendError],
        error: BackendError,
    ) -> dict[Backend, BackendError]:
        """The backends that cannot continue the stream: those on which it failed, and those without its model."""
        # A backend that lost the stream to a drain has not failed.
        failed = [one for one, reason in excluded.items() if not isinstance(reason, RequestMoved)]
        grown: dict[Backend, BackendError] = dict.fromkeys(failed, _CANNOT_CONTINUE)
        serving = self._serving(request)
        if not serving:
            return dict.fromkeys(self._fleet.backends, _CANNOT_CONTINUE)
        [broken] = serving
        grown[broken] = error
        for backend in self._fleet.backends:
            if backend in grown:
                continue
            if not backend.serving.continues(broken.serving, request.model) or not stream.takes_events_of(backend):
                grown[backend] = _CANNOT_CONTINUE
        return grown

    def _broken_rule(
        self,
        request: ProxiedRequest,
        stream: ResumableStream,
        excluded: Mapping[Backend, BackendError],
        *,
        is_over: bool,
    ) -> str | None:
        if stream.assembled is not None:  # the rules about requests have not been asked yet
            rule = broken_rule(stream.members) if self.may_resume(request) else "not_wanted"
            if rule is not None:
                return rule
        transcript = stream.transcript
        if (problem := problem_of(transcript)) is not None:
            return problem
        if is_over:
            needs_usage = stream.assembled is not None or wants_usage(stream.members)
            return "no_usage" if needs_usage and not transcript.has_usage else None
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

    def _resume(self, request: ProxiedRequest, stream: ResumableStream, error: BackendError) -> None:
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
        request.body = continued(stream.members, transcript.text, transcript.text_events)
        comment = b": resumed on another backend after %b\n\n" % error.code.encode() if self._sends_comments else b""
        stream.resume(comment)
