"""A sink that keeps a reply whole."""

from __future__ import annotations

from inference_engine_proxy_server.errors import InvalidReply
from inference_engine_proxy_server.wire.reply_sink import ReplySource

__all__ = ["CollectedReply"]


class CollectedReply:
    """Keeps a reply, up to ``limit_bytes`` of its body. A :class:`~.reply_sink.ReplySink`.

    Attributes:
        status, reason, fields: as in :meth:`.Exchange.begin`; 0 and empty before the reply.
        sent_bytes: bytes of the body.
    """

    chunks = None
    source: ReplySource | None = None
    pass_through = None

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._pieces: list[bytes] = []
        self.sent_bytes = 0
        self.status = 0
        self.reason = self.fields = b""

    @property
    def body(self) -> bytes:
        """The body so far."""
        return b"".join(self._pieces)

    @property
    def parts(self) -> tuple[int, bytes, bytes, bytes]:
        """What :meth:`write_whole` of another sink needs."""
        return self.status, self.reason, self.fields, self.body

    def begin(self, status: int, reason: bytes, fields: bytes, content_length: int | None) -> None:
        """Keep the header section."""
        del content_length
        self.status, self.reason, self.fields = status, reason, fields

    def write_whole(self, status: int, reason: bytes, fields: bytes, body: bytes) -> None:
        """Keep a reply that came in one piece."""
        self.begin(status, reason, fields, len(body))
        if body:
            self.write(body)

    def flush(self) -> None:
        """Does nothing: the header section is kept, not sent."""

    def write(self, payload: bytes) -> None:
        """Keep a piece of the body.

        Raises:
            InvalidReply: the body is longer than the limit.
        """
        self.sent_bytes += len(payload)
        if self.sent_bytes > self._limit_bytes:
            raise InvalidReply("The backend's reply is too long to be read.")
        self._pieces.append(payload)

    def end(self) -> None:
        """Does nothing: the requester awaits the reply's completion."""
