"""The receiver of a backend's reply, as the backend's connection sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

__all__ = ["ChunkSink", "HeldReply", "PassThrough", "ReplySink", "ReplySource"]


class HeldReply(NamedTuple):
    """A reply whose header section has arrived and whose body waits for a decision.

    Attributes:
        fields: lines of its header section.
    """

    status: int
    fields: bytes


class ReplySource(Protocol):
    """Where a reply's bytes come from; it is paused while the client reads too slowly."""

    @property
    def is_unanswered(self) -> bool:
        """Whether a request waits for its reply, or for the first event of a stream."""

    def comment_sent(self) -> None:
        """The proxy has sent the client a comment ahead of the reply."""

    def pause_reading(self) -> None:
        """Send no more until :meth:`resume_reading`."""

    def resume_reading(self) -> None:
        """Continue."""


class PassThrough(Protocol):
    """A sink whose write function the sender may call directly, with whole chunks.

    The caller of ``write_through`` updates ``sent_bytes`` and ``last_block`` itself.
    """

    sent_bytes: int
    last_block: bytes
    write_through: Callable[[bytes], None]


class ChunkSink(Protocol):
    """Takes whole chunks, framing included."""

    def write_chunks(self, block: bytes) -> None:
        """Take whole chunks, without the last chunk."""

    def write_last_chunks(self, block: bytes) -> None:
        """Take whole chunks, including the last chunk."""


class ReplySink(Protocol):
    """Receives a reply; :class:`~.exchange.Exchange` is one and documents each method."""

    source: ReplySource | None

    @property
    def sent_bytes(self) -> int:
        """Bytes received so far. The number grows as long as the reply makes progress."""

    @property
    def chunks(self) -> ChunkSink | None:
        """Takes whole chunks unchanged; ``None`` when the body must be written in pieces without chunk framing."""

    @property
    def pass_through(self) -> PassThrough | None:
        """The sink's direct path for whole chunks; ``None`` when each block needs a method call."""

    def begin(self, status: int, reason: bytes, fields: bytes, content_length: int | None) -> None:
        """Open the reply."""

    def write_whole(self, status: int, reason: bytes, fields: bytes, body: bytes) -> None:
        """Open the reply and take its whole body."""

    def flush(self) -> None:
        """Send the header section."""

    def write(self, payload: bytes) -> None:
        """Take a piece of the body."""

    def end(self) -> None:
        """The reply is complete."""
