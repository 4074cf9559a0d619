"""The context of one request: an exchange, and what the other packages store about it."""

from __future__ import annotations

from typing import cast

from inference_engine_proxy_server.access.gate import Access
from inference_engine_proxy_server.errors import ProxyError
from inference_engine_proxy_server.requests.content import RequestContent, read_content
from inference_engine_proxy_server.resume.resumable_stream import ResumableStream
from inference_engine_proxy_server.routing.requirements import Requirements
from inference_engine_proxy_server.telemetry.request_record import RequestRecord
from inference_engine_proxy_server.wire.exchange import ClientSide, Exchange
from inference_engine_proxy_server.wire.request_head import RequestHead

__all__ = ["ProxiedRequest"]

_PREFLIGHT_PASSED = (
    b"access-control-allow-origin: *\r\naccess-control-allow-methods: *\r\n"
    b"access-control-allow-headers: authorization, *\r\n"  # the wildcard does not cover authorization (Fetch standard)
)


class ProxiedRequest(Exchange):
    """An exchange with the state of its request in the proxy.

    Attributes:
        model: the model that the request names; ``None`` if it names none or has not been read.
        requirements: what the request requires of a backend; set before its first attempt.
        backend: base URL of the backend of the latest attempt; ``None`` when the proxy itself answers.
        losses: how many backends received the request and failed to answer it.
        sink: receives the backend's reply instead of the request itself; ``None`` for the request itself.
        resumes: how often its stream was resumed.
    """

    __slots__ = ("_content", "backend", "losses", "model", "requirements", "resumes", "sink")

    requirements: Requirements

    def __init__(self, connection: ClientSide, head: RequestHead, body: bytes, request_id: str, client: str) -> None:
        Exchange.__init__(self, connection, head, body, request_id, client)
        self.model: str | None = None
        self.backend: str | None = None
        self.losses = self.resumes = 0
        self.sink: ResumableStream | None = None
        self._content: RequestContent | None = None

    @property
    def content(self) -> RequestContent:
        """The content of the request's target and body, without the prompt; decoded on first use."""
        content = self._content
        if content is None:
            head = self.head
            content = self._content = read_content(head.target, self.body, head.passed_on)
        return content

    @property
    def awaits_reply(self) -> bool:
        """Whether any backend may still reply: nothing of a reply was sent, or a broken stream is being resumed."""
        return (not self.begun or self.has_only_comments) if self.sink is None else self.sink.awaits_reply

    @property
    def access(self) -> Access | None:
        """The permissions of the request's API key; ``None`` when the request has no key and needs none."""
        return cast(Access | None, self.head.access)

    def fail(self, error: ProxyError) -> None:
        """Answer with ``error``, see :meth:`Exchange.fail`; but approve a preflight if the server is at fault."""
        if not self.begun:
            self.backend = None
            if error.status >= 500 and self.head.is_preflight and not self.done:
                # A browser hides the error of a preflight from its page. The page can read that of the next request.
                self.pass_preflight()
                return
        super().fail(error)

    def pass_preflight(self) -> None:
        """Approve a CORS preflight, so that the browser sends the actual request, which may still be rejected."""
        self.backend_fields = b""
        self.respond(204, _PREFLIGHT_PASSED, b"")

    def record(self, now: float) -> RequestRecord:
        """The record of the request, which ended at ``now``."""
        head = self.head
        started_at = self.started_at
        first_byte_at = None if self.has_only_comments else self.first_byte_at
        return RequestRecord(
            self.client,
            head.method,
            head.path,
            self.status,
            self.outcome,
            self.backend,
            self.model,
            None if first_byte_at is None else first_byte_at - started_at,
            now - started_at,
            self.sent_bytes,
            self.request_id,
            self.resumes,
        )
