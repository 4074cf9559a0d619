"""The receiver of a stream that can be resumed, and of its continuations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from inference_engine_proxy_server.errors import BackendError, StreamNotContinued
from inference_engine_proxy_server.requests.content import all_members
from inference_engine_proxy_server.resume.assembled_reply import AssembledReply
from inference_engine_proxy_server.resume.assembly_rules import as_stream
from inference_engine_proxy_server.resume.dialect import Dialect
from inference_engine_proxy_server.resume.events import MALFORMED, split_events
from inference_engine_proxy_server.resume.seam import Seam
from inference_engine_proxy_server.resume.transcript import Transcript
from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.exchange_sink import ExchangeSink
from inference_engine_proxy_server.wire.late_reply import LateReply
from inference_engine_proxy_server.wire.reply_fields import is_event_stream
from inference_engine_proxy_server.wire.reply_sink import PassThrough

__all__ = ["ResumableStream"]

_EVENT_ENDS = (b"\n\n", b"\r\n\r\n")
_MOST_UNFINISHED_BYTES = 64 * 1024  # of an event; a longer one is relayed as it comes, and the stream is not resumed


class ResumableStream(ExchangeSink):
    """Relays whole events to ``exchange``, or to ``assembled``, and keeps a transcript of them.

    It is the :class:`~.reply_sink.ReplySink` of all attempts. An event that the engine ends a failed stream with is
    withheld, and so is the end of a stream that is not complete: either the stream is resumed, or :meth:`give_up` sends
    them.

    Args:
        exchange: the request.
        dialect: of the request's API.
        members: of the request's body.
        clock: a monotonic clock, in seconds.
        assembled: takes the events of a request without ``stream``; ``None`` if they go to the client.

    Attributes:
        dialect, members, assembled: see above.
        transcript: what was delivered.
        excluded: the backends that do not get a continuation, with the reason for each.
        is_cut: the latest backend ended its stream before the answer was complete.
        backend: of the latest attempt; ``None`` before the first.
    """

    backend: Any = None
    excluded: Mapping[Any, BackendError] = MappingProxyType({})
    chunks = None  # events are written, and chunks that are events take the direct path

    def __init__(
        self,
        exchange: Exchange,
        dialect: Dialect[Any],
        members: Mapping[str, msgspec.Raw],
        clock: Callable[[], float],
        assembled: AssembledReply | None = None,
    ) -> None:
        super().__init__(exchange)
        self.takes_comments = assembled is None
        self.dialect = dialect
        self.members = members
        self.assembled = assembled
        self._clock = clock
        self._began_at = 0.0  # the latest reply
        self._seconds = 0.0  # for which earlier backends generated
        self.transcript: Transcript = dialect.transcript()
        self.is_cut = False
        self._target: Exchange | AssembledReply = assembled or exchange
        self._inner: Exchange | AssembledReply | LateReply = self._target
        self._relays_events = False  # false for a reply that is no event stream, or whose length is fixed
        self._unfinished = b""  # start of an event
        self._withheld = b""
        self._seam: Seam | None = None
        self._opening = b""  # sent ahead of the first event of a continuation
        self._write_directly: Callable[[bytes], None] | None = None  # the target's direct path

    @property
    def pass_through(self) -> PassThrough | None:  # type: ignore[override]
        """The target, once its direct path is open; :meth:`_take_chunk` then takes each chunk ahead of it."""
        target = self._target
        if self._seam is not None or not self._relays_events or self._inner is not target:
            return None
        if target.pass_through is None:
            return None
        if self._write_directly is None:
            self._write_directly = target.write_through
            target.write_through = self._take_chunk
        return target

    @property
    def sent_bytes(self) -> int:
        """Includes bytes that were held back, so that they count as progress of the backend."""
        return self._inner.sent_bytes + len(self._unfinished) + len(self._withheld)

    def takes_events_of(self, backend: object) -> bool:
        """Whether ``backend`` should answer with a stream for this receiver."""
        return self.assembled is None or backend in self.assembled.backends

    def body_for(self, backend: object, body: bytes) -> bytes | None:
        """The body for an attempt on ``backend``; ``None`` if the client should get its reply without this receiver.

        Args:
            body: of the request.
        """
        self.backend = backend
        if self.assembled is None:
            return body
        if not self.takes_events_of(backend):
            return None
        self.exchange.head.refuse_compression()
        # The body of a continuation is not that of the client.
        return as_stream(all_members(body) or {} if self.is_at_seam else self.members)

    # --- the reply

    def begin(self, status: int, reason: bytes, fields: bytes, content_length: int | None) -> None:
        """Open the reply; a continuation must be a stream of events.

        Raises:
            StreamNotContinued: a continuation is not.
        """
        self.status = status
        self._began_at = self._clock()
        self.is_cut = False
        self._unfinished = self._withheld = b""  # of an attempt that delivered nothing
        is_stream = status == 200 and is_event_stream(fields)
        if self._seam is not None:
            self._seam = self.dialect.seam(self.transcript, self._seconds)
            if not is_stream:
                raise StreamNotContinued("The backend cannot continue the stream.")
            return
        if self.exchange.has_only_comments:
            self._inner = LateReply(self.exchange)
        self._relays_events = is_stream and content_length is None
        self._inner.begin(status, reason, fields, content_length)

    def write_whole(self, status: int, reason: bytes, fields: bytes, body: bytes) -> None:
        """Relay a reply that came in one piece."""
        self.begin(status, reason, fields, len(body))
        if body:
            self.write(body)

    def flush(self) -> None:
        """Send the header section."""
        self._inner.flush()

    def write(self, payload: bytes) -> None:
        """Relay the events that are now complete."""
        if not self._relays_events:
            self._inner.write(payload)
            return
        if self._unfinished:
            payload = self._unfinished + payload
            self._unfinished = b""
        if not payload.endswith(_EVENT_ENDS):
            payload = self._hold_unfinished(payload)
        if not self._relays_events:
            self.give_up()
            self._inner.write(payload)
            return
        if not payload:
            return
        # Only events with these bytes can be failures, in any API; error types of llama.cpp end with the first ones.
        if self._seam is None and not self._withheld and b'error"' not in payload and b'"abort"' not in payload:
            self._deliver(payload)
        else:
            self._deliver_each(payload)

    def end(self) -> None:
        """End the reply if its answer is complete."""
        if self._relays_events:
            self.transcript.read()
            transcript = self.transcript
            # A stream that cannot be resumed ends as its engine ends it.
            is_complete = transcript.is_done or transcript.finish_reason is not None or transcript.problem is not None
            if self._withheld or self._unfinished or not is_complete:
                self.is_cut = True
                return
        self._inner.end()

    # --- after a failure

    @property
    def has_delivered(self) -> bool:
        """Whether events were delivered that a continuation could follow."""
        return self._relays_events and self._target.begun

    @property
    def awaits_reply(self) -> bool:
        """Whether any backend may still reply: no event was delivered, or a continuation is awaited."""
        exchange = self.exchange
        return self.is_at_seam or exchange.has_only_comments or not (exchange.begun or self._target.begun)

    def resume(self, opening: bytes) -> None:
        """Continue with the next reply; ``opening``: comments to send ahead of its first event."""
        self.transcript.read()
        self._seconds += self._clock() - self._began_at
        self._seam = self.dialect.seam(self.transcript, self._seconds)
        self.exchange.source = None  # the connection may serve another request by now
        self._opening = opening
        self.is_at_seam = True

    def close(self) -> None:
        """Let go of the target, whose end has come: both refer to each other."""
        if self._write_directly is not None and self._target.write_through == self._take_chunk:
            self._target.write_through = self._write_directly

    def give_up(self) -> None:
        """Relay the events that were withheld, because the stream is not resumed. An unfinished event is discarded."""
        withheld, self._withheld, self._unfinished = self._withheld, b"", b""
        if withheld and not self.exchange.done:
            self._inner.write(withheld)

    def end_as_received(self) -> None:
        """End the stream as its backend did."""
        self._withheld += self._unfinished
        self.give_up()
        self._inner.end()

    def complete(self) -> None:
        """End an answer of which only the last events are missing: all its tokens were delivered."""
        if ending := self.dialect.ending(self.members, self.transcript):
            self._inner.write(ending)
        self._inner.end()

    # --- events

    def _take_chunk(self, chunk: bytes) -> None:
        """Deliver one whole chunk of the direct path, which the target has already counted as sent."""
        if (
            chunk.endswith(b"\n\n\r\n")
            and b'error"' not in chunk
            and b'"abort"' not in chunk
            and not self._unfinished
            and not self._withheld
        ):
            self.transcript.take(chunk[chunk.find(b"\n") + 1 : -2])
            self._write_directly(chunk)  # type: ignore[misc]  # set with this method
            return
        self._target.sent_bytes -= len(chunk)
        self._target.last_block = b""
        self.write(chunk[chunk.find(b"\n") + 1 : -2])

    def _hold_unfinished(self, payload: bytes) -> bytes:
        events, self._unfinished = split_events(payload)
        if len(self._unfinished) > _MOST_UNFINISHED_BYTES:
            if self._seam is not None:
                raise StreamNotContinued("The backend cannot continue the stream.")
            self._relays_events = False
            self._unfinished = b""
            self.transcript.problem = "unknown_events"
            return payload
        return b"".join(events)

    def _deliver(self, events: bytes) -> None:
        self.transcript.take(events)
        self._inner.write(events)

    def _deliver_each(self, block: bytes) -> None:
        events, _ = split_events(block)
        for event in events:
            if self._withheld or self.dialect.is_failure(event):
                self._withheld += event
                continue
            try:
                rewritten = event if self._seam is None else self._seam.rewrite(event)
            except MALFORMED as error:
                raise StreamNotContinued("The backend cannot continue the stream.") from error
            if rewritten:
                opening, self._opening = self._opening, b""
                if opening:
                    self._inner.write(opening)
                self._deliver(rewritten)
                if self.is_at_seam:
                    self.is_at_seam = False
                    self.exchange.pause_new_source()
