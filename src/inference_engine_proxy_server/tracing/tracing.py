"""Begins and ends the traces of requests."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable

from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import SpanKind, Tracer

from inference_engine_proxy_server import __version__
from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.dispatch.request_watch import UNWATCHED, RequestWatch
from inference_engine_proxy_server.dispatch.timed_request import TimedRequest
from inference_engine_proxy_server.errors import ProxyError
from inference_engine_proxy_server.tracing.attributes import OPERATIONS, of_parameters, of_request
from inference_engine_proxy_server.tracing.request_trace import ReplyReader, RequestTrace
from inference_engine_proxy_server.tracing.trace_context import parent_in, with_parent
from inference_engine_proxy_server.wire.client_side import ClientSide
from inference_engine_proxy_server.wire.request_head import RequestHead

__all__ = ["TracedRequest", "TracedTimedRequest", "Tracing"]

_STOP_SECONDS = 5.0  # longest wait for a collector at the end
_LOOK_SECONDS = 0.02

logger = logging.getLogger(__name__)


class TracedRequest(ProxiedRequest):
    """A request that may have a trace.

    Attributes:
        watch: its :class:`RequestTrace`; without one, nobody watches.
    """

    __slots__ = ("watch",)

    watch: RequestWatch

    def __init__(self, connection: ClientSide, head: RequestHead, body: bytes, request_id: str, client: str) -> None:
        super().__init__(connection, head, body, request_id, client)
        self.watch = UNWATCHED

    def fail(self, error: ProxyError) -> None:
        """See :meth:`ProxiedRequest.fail`."""
        if isinstance(self.watch, RequestTrace):
            self.watch.failed(error)
        super().fail(error)


class TracedTimedRequest(TracedRequest, TimedRequest):
    """The same with ``Server-Timing``."""

    __slots__ = ()


class Tracing:
    """Makes a span for each request.

    Args:
        start: starts the provider of tracers.
        clock: the clock of requests, monotonic, in seconds.
        scheme: ``http`` or ``https``, of the proxy's port.
        provider_of: the kind of engine at a base URL; ``None`` if it is not known.
    """

    def __init__(
        self,
        start: Callable[[], TracerProvider],
        clock: Callable[[], float],
        scheme: str,
        provider_of: Callable[[str | None], str | None],
    ) -> None:
        self._start = start
        self._clock = clock
        self._scheme = scheme
        self._provider_of = provider_of
        self._tracer: Tracer | None = None  # before the start and after the end

    def begin(self, request: TracedRequest) -> None:
        """Begin the span of ``request``, and make it the parent of what engines do for the request."""
        if self._tracer is None:
            return
        head = request.head
        started_ns = time.time_ns() - int((self._clock() - request.started_at) * 1e9)
        span = self._tracer.start_span(
            OPERATIONS.get(head.path, head.method),
            parent_in(head),
            SpanKind.SERVER,
            of_request(request, self._scheme),
            start_time=started_ns,
        )
        request.head = with_parent(head, span)
        if not span.is_recording():
            return
        request.watch = trace = RequestTrace(span, request.started_at, started_ns, self._clock)
        if head.method == "POST" and head.path in OPERATIONS:
            span.set_attributes(of_parameters(request))
            request.head.refuse_compression()
            request.observers.add(ReplyReader(request.observers.excerpt(), trace))

    def end(self, request: TracedRequest) -> None:
        """End the span of ``request``, which is over, if it has one."""
        if isinstance(request.watch, RequestTrace):
            request.watch.end(request, self._provider_of(request.backend))

    async def run(self) -> None:
        """Send spans until cancelled, then the rest, if the collector takes them at once."""
        try:
            provider = self._start()
        except Exception as error:  # whatever OpenTelemetry raises about its variables
            logger.error("tracing: OpenTelemetry cannot start, and no request is traced: %s", error)
            return
        self._tracer = provider.get_tracer("inference_engine_proxy_server", __version__)
        try:
            await asyncio.get_running_loop().create_future()  # endless
        finally:
            self._tracer = None
            await _stop(provider)


async def _stop(provider: TracerProvider) -> None:
    """Stop ``provider``, which may wait for the collector. The end of a thread of a pool would be waited for, too."""
    thread = threading.Thread(target=provider.shutdown, daemon=True, name="stop tracing")
    thread.start()
    for _ in range(round(_STOP_SECONDS / _LOOK_SECONDS)):
        if not thread.is_alive():
            return
        await asyncio.sleep(_LOOK_SECONDS)
