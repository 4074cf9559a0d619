"""Relays a stream, and continues it on another backend as often as it breaks and the rules allow."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Literal

from inference_engine_proxy_server.backends.begun_answers import BegunAnswers
from inference_engine_proxy_server.dispatch.forwarder import Forwarder
from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.errors import BackendBroke, BackendError, BackendLacks, ProxyError, RequestMoved
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.fleet import Fleet, FleetObserver
from inference_engine_proxy_server.requests.headers import wants_resume
from inference_engine_proxy_server.resume.resumable_stream import ResumableStream
from inference_engine_proxy_server.resume.rules import MOST_RESUMES, problem_of
from inference_engine_proxy_server.telemetry.journal import BACKEND, Journal
from inference_engine_proxy_server.telemetry.request_metrics import RequestMetrics

__all__ = ["StreamRelay"]

logger = logging.getLogger(__name__)

_CANNOT_CONTINUE = BackendLacks("The backend cannot continue the stream.")
_WOULD_REPEAT_SPACE = BackendLacks("The backend would repeat the white space at the end of the stream.")


class StreamRelay(FleetObserver):
    """Relays streams, and continues them.

    Args:
        forwarder: makes the attempts.
        fleet: the backends.
        metrics: counts resumed streams, and broken ones that are not resumed. journal: notes them.
        resumes: ``header``: only requests with the header ``X-Stream-Resume: on`` are continued; ``off``: none.
        sends_comments: whether a comment in the stream tells the client where it was resumed.
    """

    def __init__(
        self,
        forwarder: Forwarder,
        fleet: Fleet,
        metrics: RequestMetrics,
        journal: Journal,
        *,
        resumes: Literal["on", "off", "header"],
        sends_comments: bool,
    ) -> None:
        self._forwarder = forwarder
        self._fleet = fleet
        self._metrics = metrics
        self._journal = journal
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
        while (error := await self._attempt(request, stream)) is not None:
            stream.transcript.read()
            stream.excluded = self._excluded(request, stream, error)
            is_over = _is_over(stream)
            rule = self._broken_rule(request, stream, stream.excluded, is_over=is_over)
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
            self._resume(request, stream, error)

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
        stream.transcript.read()
        if _is_over(stream):
            return False
        excluded = self._excluded(request, stream, _CANNOT_CONTINUE)
        if self._broken_rule(request, stream, excluded, is_over=False) is None:
            return True
        # A client that has received nothing of its reply may get another one.
        is_repeatable = stream.assembled is not None and not request.losses and not request.resumes
        return is_repeatable and self._forwarder.has_other(request, [backend])

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
                request.watch.not_resumed(request.backend or "", "not_continued")
            elif isinstance(error, BackendError) and stream.has_delivered:
                return error.with_traceback(None)
            raise
        return BackendBroke("The backend ended its stream before the answer was complete.") if stream.is_cut else None

    def _excluded(
        self, request: ProxiedRequest, stream: ResumableStream, error: BackendError
    ) -> dict[Backend, BackendError]:
        """The backends that cannot continue the stream: the one on which it broke, and those without its model.

        Backends on which it broke before may have it again: those that have not recovered get no requests at all.
        """
        broken: Backend = stream.backend  # it may have left the fleet
        limit = stream.dialect.tokens_left(stream.members, 0)
        most_tokens = math.inf if limit is None else len(request.body) + limit  # a token has at least one byte
        excluded: dict[Backend, BackendError] = {broken: error}
        for one in self._fleet.backends:
            if one.url == broken.url:
                excluded[one] = error
            elif not stream.takes_events_of(one) or not one.serving.continues(
                broken.serving, request.model, stream.dialect.api, most_tokens
            ):
                excluded[one] = _CANNOT_CONTINUE
            elif stream.transcript.is_message and (lack := _lack_of(one, stream.transcript.text)) is not None:
                excluded[one] = lack
        return excluded

    def _broken_rule(
        self,
        request: ProxiedRequest,
        stream: ResumableStream,
        excluded: Mapping[Backend, BackendError],
        *,
        is_over: bool,
    ) -> str | None:
        if stream.assembled is not None:  # the rules about requests have not been asked yet
            rule = stream.dialect.broken_rule(stream.members) if self.may_resume(request) else "not_wanted"
            if rule is not None:
                return rule
        transcript = stream.transcript
        if transcript.problem is not None:
            return transcript.problem
        if is_over:
            needs_usage = stream.assembled is not None or stream.dialect.wants_usage(stream.members)
            return "no_usage" if needs_usage and not transcript.has_usage else None
        if (problem := problem_of(transcript, stream.dialect.stop_strings(stream.members))) is not None:
            return problem
        if request.resumes >= MOST_RESUMES:
            return "resumes"
        if self._forwarder.has_other(request, excluded):
            return None
        unable = [one for one, error in excluded.items() if error is not _WOULD_REPEAT_SPACE]
        return "trailing_space" if self._forwarder.has_other(request, unable) else "no_other_backend"

    def _give_up(self, request: ProxiedRequest, stream: ResumableStream, rule: str) -> None:
        """Relay what was withheld; a stream that its engine has ended ends here, too."""
        self._metrics.count_unresumed(rule)
        request.watch.not_resumed(request.backend or "", rule)
        logger.warning("request %s: its stream broke and is not resumed: %s", request.request_id, rule)
        text = f"The stream of request {request.request_id} broke on backend {BACKEND} and is not resumed: {rule}."
        self._journal.note("resume", text, severity="error", backend=request.backend, like=rule)
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
        self._journal.note(
            "resume",
            f"The stream of request {request.request_id} broke on backend {BACKEND} after {transcript.text_events} "
            f"tokens ({error.code}) and continues on another backend.",
            severity="warning",
            backend=request.backend,
            like=error.code,
        )
        request.watch.resumed(request.backend or "", error, transcript.text_events)
        request.resumes += 1
        request.body = stream.dialect.continued(stream.members, transcript)
        comment = b": resumed on another backend after %b\n\n" % error.code.encode() if self._sends_comments else b""
        stream.resume(comment)


def _lack_of(backend: Backend, text: str) -> BackendLacks | None:
    """Why ``backend`` would not continue a message with exactly this beginning; ``None`` if it would."""
    match backend.serving.begun_answers:
        case BegunAnswers.LOST if text:
            return _CANNOT_CONTINUE
        case BegunAnswers.TRIMMED if text[-1:].isspace():
            return _WOULD_REPEAT_SPACE
    return None


def _is_over(stream: ResumableStream) -> bool:
    """Whether only the end of the answer is missing."""
    left = stream.dialect.tokens_left(stream.members, stream.transcript.text_events)
    return stream.transcript.finish_reason is not None or (left is not None and left <= 0)
