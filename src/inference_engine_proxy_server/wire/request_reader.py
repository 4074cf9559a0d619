"""Splits a connection's bytes into complete requests, and checks early whether each request is admitted."""

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
from inference_engine_proxy_server.wire.websocket_handshake import open_handshake

__all__ = ["RequestReader", "unreadable_head"]

_BLANK_LINES = re.compile(rb"\A(?:\r\n)++")


class RequestReader:
    """Reads the requests of one connection.

    Args:
        context: shared by all connections of clients.
        peer: the peer's address.
        client: the peer's name in the log.
        write: sends an interim reply.

    Attributes:
        head: header section of the request that is arriving; ``None`` until it is complete.
        excess: bytes after the last complete request.
        held_bytes: this connection's part of :attr:`.Load.body_bytes`.
        deadline: when the request must be complete, or more of it must have arrived; ``NEVER`` before its first byte.
        is_in_step: whether a rejected request has been read to its end, so that the next one can be read.
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
        self._is_trusted = context.forwarding.trusts(peer)  # the peer is a trusted proxy
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
        """Whether a part of a request has arrived."""
        return bool(self._received) or self.head is not None

    def feed(self, data: bytes) -> tuple[RequestHead, bytes] | None:
        """Take the next bytes of the connection.

        Returns:
            Head and body of the request that is now complete; ``None`` when more bytes are needed.

        Raises:
            ClientError: the request is invalid or not admitted.
            CapacityError: there is no room for the request now.
        """
        if self._body is not None and self.head is not None:
            return self._read_body(self._body, self.head, data)
        received = self._received + data if self._received else data
        if received.startswith(b"\r\n"):  # RFC 9112, 2.2: some clients send an extra line break after a body
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
        # The usual case: the whole request in one read.
        if head.content_length == size <= self._limits.body_bytes and load.body_bytes + size <= load.most_body_bytes:
            load.body_bytes += size
            self.held_bytes = size
            self.head = None
            self.excess = b""
            self.deadline = NEVER
            return head, rest
        return self._begin_body(head, rest)

    def release(self) -> None:
        """The complete request has been served."""
        self._load.body_bytes -= self.held_bytes
        self.held_bytes = 0

    def give_up(self) -> None:
        """Discard the bytes of an incomplete request."""
        self.release()
        self.head = self._body = None
        self._received = self.excess = b""
        self.deadline = NEVER
        self.is_in_step = False

    def _parse(self, section: bytes) -> RequestHead:
        self.head = head = parse_request_head(section, self._limits.head)
        forwarding = self._context.forwarding
        head.sender = (self._is_trusted and forwarding.client_of(head)) or self._client
        if head.upgrade is not None:
            if head.upgrade != b"websocket":
                raise _upgrade_refused(head.upgrade)
            open_handshake(head)
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
        # A client that retries during overload should keep its connection, not open a new one each time.
        self.is_in_step = head.content_length == size
        self._context.shed("requests", head)
        self.is_in_step = False

    def _begin_body(self, head: RequestHead, rest: bytes) -> tuple[RequestHead, bytes] | None:
        body = self._body = RequestBody(head, self._limits.body_bytes)
        # Only received bytes count: a client that announces a large body and sends nothing must not block others.
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


def _upgrade_refused(protocol: bytes) -> ClientError:
    message = f"The protocol '{protocol[:50].decode('latin-1')}' is not supported here. Send the request over HTTP."
    return ClientError(message, status=426, code="upgrade_not_supported")


def unreadable_head() -> RequestHead:
    """A placeholder for an unreadable header section, so that its rejection is sent and logged like any reply."""
    head = RequestHead()
    head.method = head.path = "-"
    head.target = b"-"
    head.host = b""
    head.minor_version = 1
    head.keep_alive = False
    head.content_length = head.request_id = head.upgrade = None
    head.is_head = head.chunked = head.has_body = head.expects_continue = False
    head.authorization = head.api_key = head.azure_key = head.admin_key = None
    head.credentials = b""
    head.way = {}
    head.passed_on = b""
    head.sender = ""
    head.destination = head.access = head.usual_protocol = None
    return head
