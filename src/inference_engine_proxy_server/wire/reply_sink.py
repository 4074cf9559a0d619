"""Where a backend's reply goes, as the connection that it comes on sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from inference_engine_proxy_server.wire.exchange import ReplySource

__all__ = ["HeldReply", "ReplySink"]


class HeldReply(NamedTuple):
    """A reply that has come and waits for a decision; ``fields``: the lines of its header section."""

    status: int
    fields: bytes


class ReplySink(Protocol):
    """Where a reply goes; :class:`~.exchange.Exchange` is one. See there for what each method means."""

    source: ReplySource | None
    sent_bytes: int
    last_block: bytes

    @property
    def takes_chunks(self) -> bool:
        """Whole chunks may be written as they are."""

    @property
    def write_through(self) -> Callable[[bytes], None] | None:
        """Takes whole chunks with nothing in between."""

    def begin(self, status: int, reason: bytes, fields: bytes, content_length: int | None) -> None:
        """Open the reply."""

    def write_whole(self, status: int, reason: bytes, fields: bytes, body: bytes) -> None:
        """Open the reply and take its whole body."""

    def flush(self) -> None:
        """Let the header section go."""

    def write(self, payload: bytes) -> None:
        """Take a piece of the body."""

    def write_chunks(self, block: bytes) -> None:
        """Take whole chunks as they are."""

    def write_last_chunks(self, block: bytes) -> None:
        """Take the last chunks as they are."""

    def end(self) -> None:
        """The reply is complete."""
