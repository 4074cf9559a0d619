"""The context of one request: an exchange, and what the other packages store about it."""

from __future__ import annotations

from typing import cast

import msgspec

from inference_engine_proxy_server.access.gate import Access
from inference_engine_proxy_server.backends.reply_facts import NO_TOKENS, Tokens, read_facts, read_tokens, says_its_end
from inference_engine_proxy_server.dispatch.request_watch import UNWATCHED, RequestWatch
from inference_engine_proxy_server.errors import ProxyError
from inference_engine_proxy_server.requests.content import (
    PromptContent,
    RequestContent,
    read_content,
    read_content_with_prompt,
)
from inference_engine_proxy_server.requests.destinations import streams_events
from inference_engine_proxy_server.resume.resumable_stream import ResumableStream
from inference_engine_proxy_server.routing.decisions import Decision, Rule
from inference_engine_proxy_server.routing.requirements import Requirements
from inference_engine_proxy_server.telemetry.request_record import RequestRecord
from inference_engine_proxy_server.wire.client_side import ClientSide
from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.outcome import Outcome
from inference_engine_proxy_server.wire.request_head import RequestHead

__all__ = ["ProxiedRequest"]

_PREFLIGHT_PASSED = (
    b"access-control-allow-origin: *\r\naccess-control-allow-methods: *\r\n"
    b"access-control-allow-headers: authorization, *\r\n"  # the wildcard does not cover authorization (Fetch standard)
)


class ProxiedRequest(Exchange):
    """An exchange with the state of its request in the proxy.

    Attributes:
        model: the model that the request names, as engines know it; ``None`` if it names none or has not been read.
        alias: the client's name for it, if that is another one; ``None`` if it is not.
        requirements: what the request requires of a backend; set before its first attempt.
        decision: the latest choice of a backend for it; set only if decisions are recorded.
        backend: base URL of the backend of the latest attempt; ``None`` when the proxy itself answers.
        attempts: how many there were. rule: chose the backend of the latest one; ``None`` before the first.
        queue_seconds: how long it has waited for a free backend. is_waiting: whether it waits now.
        losses: how many backends received the request and failed to answer it.
        fallback_after_seconds: how long it may wait for its model before another one serves it; infinite if it may wait
            as long as usual; ``None`` if there is no other one.
        sink: receives the backend's reply instead of the request itself; ``None`` for the request itself.
        resumes: how often its stream was resumed.
        watch: receives the steps of the request, such as the beginning of a wait. Tracing gives each request its own.
    """

    __slots__ = (
        "_content", "alias", "attempts", "backend", "decision", "fallback_after_seconds", "is_waiting", "losses",
        "model", "queue_seconds", "requirements", "resumes", "rule", "sink",
    )  # fmt: skip

    watch: RequestWatch = UNWATCHED
    alias: str | None
    backend: str | None
    decision: Decision
    fallback_after_seconds: float | None
    model: str | None
    requirements: Requirements
    rule: Rule | None
    sink: ResumableStream | None
    _content: RequestContent | None

    def __init__(self, connection: ClientSide, head: RequestHead, body: bytes, request_id: str, client: str) -> None:
        Exchange.__init__(self, connection, head, body, request_id, client)
        self.model = self.alias = self.backend = self.rule = self.fallback_after_seconds = self.sink = None
        self._content = None
        self.attempts = self.losses = self.resumes = 0
        self.queue_seconds = 0.0
        self.is_waiting = False

    @property
    def content(self) -> RequestContent:
        """The content of the request's target and body, without the prompt; decoded on first use."""
        content = self._content
        if content is None:
            head = self.head
            content = self._content = read_content(head.target, self.body, head.passed_on)
        return content

    def read_with_prompt(self) -> RequestContent:
        """:attr:`content`, with the parts of the prompt if the body has any.

        If this is called before :attr:`content` is used, the body is decoded once.
        """
        content = self._content
        if not isinstance(content, PromptContent):
            head = self.head
            content = self._content = read_content_with_prompt(head.target, self.body, head.passed_on)
        return content

    def rewrite(self, head: RequestHead, body: bytes, model: str, *, has_new_limit: bool) -> None:
        """Replace the request before it is sent.

        Args:
            head, body: what is sent.
            model: the model that the request names now.
            has_new_limit: whether the most tokens of the answer may have changed.
        """
        content = self._content
        self.head = head
        self.body = body
        self.model = model
        if content is None or has_new_limit or isinstance(content, PromptContent):  # the prompt may have changed
            self._content = None
        else:
            self._content = msgspec.structs.replace(content, model=model)

    @property
    def takes_comments(self) -> bool:
        """Whether the client skips SSE comments ahead of its reply: it asks for a stream of events.

        The header ``Accept`` does not tell: OpenAI's and Anthropic's SDKs accept ``application/json`` in any case. A
        page of another origin takes none, because only the header section of the engine allows it to read a reply.
        """
        head = self.head
        is_stream = head.method == "POST" and streams_events(head.path) and self.content.is_streamed
        return is_stream and not head.is_cross_origin

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
        if not self.begun or self.has_only_comments:
            self.backend = None
        if not self.begun and error.status >= 500 and self.head.is_preflight and not self.done:
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
        started_at, status, termination = self.started_at, self.status, self.termination
        first_byte_at = None if self.has_only_comments else self.first_byte_at
        is_stream, rule = False, self.rule
        prompt_tokens, cached_tokens, output_tokens = NO_TOKENS
        if status == 200 and self.backend is not None and self.requirements.needs_slot:
            if self._earlier_blocks or self.excerpt is not None:
                is_stream = self.is_stream
                prompt_tokens, cached_tokens, output_tokens = self._tokens()
            else:  # the whole reply is one block
                prompt_tokens, cached_tokens, output_tokens = read_tokens(self.last_block)
        access = head.access
        return RequestRecord(
            self.client,
            head.method,
            head.path,
            status,
            self.outcome,
            self.backend,
            self.model,
            None if first_byte_at is None else first_byte_at - started_at,
            now - started_at,
            self.sent_bytes,
            self.request_id,
            self.resumes,
            self.alias,
            "error_status" if status >= 400 and termination == "complete" else termination,
            is_stream,
            self.queue_seconds,
            self.attempts,
            prompt_tokens,
            cached_tokens,
            output_tokens,
            access.key.name if isinstance(access, Access) else None,
            None if rule is None else rule.name,
        )

    def _tokens(self) -> Tokens:
        """The tokens that the reply reports; not those of an answer that is not complete."""
        excerpt = self.excerpt
        tokens = read_tokens(self.ends) if excerpt is None else excerpt.parsed(read_facts)[:3]
        if self.outcome is Outcome.COMPLETE or tokens is NO_TOKENS:
            return tokens
        is_whole = says_its_end(self.reports)
        return tokens if is_whole else (*tokens[:2], None)
