"""Cuts a connection's bytes into requests, one at a time and each whole, and sees that a request may come at all."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from inference_engine_proxy_server.errors import ClientError
from inference_engine_proxy_server.tasks.deadlines import NEVER
from inference_engine_proxy_server.wire.client_context import ClientContext
from inference_engine_proxy_server.wire.head_memory import HeadMemory
from inference_engine_proxy_server.wire.request_body import RequestBody
from inference_engine_proxy_server.wire.request_head import RequestHead, check_lines, parse_request_head

__all__ = ["RequestReader", "unreadable_head"]

_BLANK_LINES = re.compile(rb"\A(?:\r\n)++")


class RequestReader:
    """Takes the bytes of one connection.

    Args:
        context: what all connections share.
        peer: the peer's address.
        client: how the log names the peer.
        write: sends an interim reply.

    Attributes:
        head: of the request that is arriving, when that much of it has come.
        excess: what came after the last whole request.
        held_bytes: how much of :attr:`.Load.body_bytes` is this connection's.
        deadline: when the request must be whole, or more of it must have come; ``NEVER``: nothing of it has come.
        is_in_step: the request that is refused has been read to its end.
    """

    __slots__ = (
        "_body", "_body_deadline", "_client", "_clock", "_context", "_head_bytes", "_is_trusted", "_limits", "_load",
        "_memory", "_peer", "_received", "_write", "deadline", "excess", "head", "held_bytes", "is_in_step",
    )  # fmt: skip

    def __init__(self, context: ClientContext[Any], peer: str, client: str, write: Callable[[bytes], None]) -> None:
        self._context = context
        self._limits = context.limits
        self._head_bytes = context.limits.head.total_bytes
        self._load = context.load
        self._clock = context.deadlines.clock
        self._peer = peer
        self._client = client
        self._is_trusted = context.forwarding.trusts(peer)  # the peer is a proxy whose word about its clients counts
        self._write = write
        self._memory = HeadMemory[RequestHead]()
        self._received = b""  # of a header section
        self._body: RequestBody | None = None
        self._body_deadline = NEVER
        self.head: RequestHead | None = None
        self.excess = b""
        self.held_bytes = 0
        self.deadline = NEVER
        self.is_in_step = False

    @property
    def has_begun(self) -> bool:
        """Whether a part of a request has come."""
        return bool(self._received) or self.head is not None

    def feed(self, data: bytes) -> tuple[RequestHead, bytes] | None:
        """Take the next bytes of the connection.

        Returns:
            The request that is now whole, head and body; ``None``: more must come.

        Raises:
            ClientError: it is no request that will be served.
            CapacityError: there is no room for it now.
        """
        if self._body is not None and self.head is not None:
            return self._read_body(self._body, self.head, data)
        received = self._received + data if self._received else data
        if received.startswith(b"\r\n"):  # RFC 9112, 2.2: some clients end a body with a line break too many
            received = _BLANK_LINES.sub(b"", received, count=1)
        end = received.find(b"\r\n\r\n", 0, self._head_bytes)
        if end < 0:
            self._await_rest_of_head(received)
            return None
        section = received[: end + 2]
        head = self._memory.recall(section)
        if head is None:
            head = self._parse(section)
            self._memory.remember(section, head)
        self.head = head
        self._received = b""
        rest = received[end + 4 :]
        size = len(rest)
        load = self._load
        if load.requests >= load.most_requests:
            self._ask_for_room(head, size)
        head.access = self._context.admit(head)
        # The usual case: all of it in one read.
        if head.content_length == size <= self._limits.body_bytes and load.body_bytes + size <= load.most_body_bytes:
            load.body_bytes += size
            self.held_bytes = size
            self.head = None
            self.excess = b""
            self.deadline = NEVER
            return head, rest
        return self._begin_body(head, rest)

    def release(self) -> None:
        """The request that was whole is over."""
        self._load.body_bytes -= self.held_bytes
        self.held_bytes = 0

    def give_up(self) -> None:
        """What has come so far will never be a whole request."""
        self.release()
        self.head = self._body = None
        self._received = self.excess = b""
        self.deadline = NEVER
        self.is_in_step = False

    def _parse(self, section: bytes) -> RequestHead:
        self.head = head = parse_request_head(section, self._limits.head)
        forwarding = self._context.forwarding
        head.sender = (self._is_trusted and forwarding.client_of(head)) or self._client
        head.destination = self._context.classify(head)
        head.passed_on += forwarding.describe(head, self._peer, is_trusted=self._is_trusted)
        return head

    def _await_rest_of_head(self, received: bytes) -> None:
        limits = self._limits.head
        check_lines(received[: limits.total_bytes], limits)
        if len(received) > limits.total_bytes:
            raise ClientError("The request's header section is too long.", status=431, code="headers_too_large")
        if self.deadline == NEVER:
            self.deadline = self._clock() + self._limits.header_seconds
        self._received = received

    def _ask_for_room(self, head: RequestHead, size: int) -> None:
        # Who asks again and again while we are overloaded should not make us accept connections as well.
        self.is_in_step = head.content_length == size
        self._context.shed("requests", head)
        self.is_in_step = False

    def _begin_body(self, head: RequestHead, rest: bytes) -> tuple[RequestHead, bytes] | None:
        body = self._body = RequestBody(head, self._limits.body_bytes)
        # Only what has come is counted: a client that announces much and sends nothing must not keep others out.
        if self._load.body_bytes + (head.content_length or 0) > self._load.most_body_bytes:
            self._context.shed("request_bytes", head)
        if head.expects_continue and not rest and not body.complete:
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._body_deadline = self._clock() + self._limits.body_total_seconds
        return self._read_body(body, head, rest)

    def _read_body(self, body: RequestBody, head: RequestHead, block: bytes) -> tuple[RequestHead, bytes] | None:
        excess = block
        if not body.complete:
            self._hold(body.feed(block), head)
            excess = body.excess
        if body.complete:
            self.excess = excess
            self._body = self.head = None
            self.deadline = NEVER
            return head, body.content
        self.deadline = min(self._clock() + self._limits.body_seconds, self._body_deadline)
        return None

    def _hold(self, size: int, head: RequestHead) -> None:
        load = self._load
        if load.body_bytes + size > load.most_body_bytes:
            self._context.shed("request_bytes", head)
        load.body_bytes += size
        self.held_bytes += size


def unreadable_head() -> RequestHead:
    """Stands for a header section that could not be read, so that its refusal is answered and logged as any reply."""
    head = RequestHead()
    head.method = head.path = "-"
    head.target = b"-"
    head.host = b""
    head.minor_version = 1
    head.keep_alive = False
    head.content_length = head.request_id = None
    head.chunked = head.expects_continue = False
    head.authorization = head.api_key = None
    head.credentials = b""
    head.way = {}
    head.passed_on = b""
    head.sender = ""
    head.destination = head.access = None
    return head
