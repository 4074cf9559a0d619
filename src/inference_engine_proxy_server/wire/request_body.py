"""A request's body, which is buffered completely before a backend is selected."""

from __future__ import annotations

from inference_engine_proxy_server.errors import ClientError
from inference_engine_proxy_server.wire.framing import ChunkedBody, InvalidChunk, TooLongBody
from inference_engine_proxy_server.wire.request_head import RequestHead

__all__ = ["RequestBody"]


class RequestBody:
    """Buffers one body up to a limit.

    Args:
        head: the request's header section, which defines the framing.
        limit_bytes: the longest body allowed.

    Attributes:
        complete: the body's last byte has been received.
        excess: bytes after the body's end; they belong to the next request.

    Raises:
        ClientError: 413, the announced or actual body is longer than allowed.
    """

    __slots__ = ("_chunks", "_limit_bytes", "_missing", "_pieces", "complete", "excess")

    def __init__(self, head: RequestHead, limit_bytes: int) -> None:
        self._chunks = ChunkedBody(limit_bytes) if head.chunked else None
        self._missing = head.content_length or 0
        self._limit_bytes = limit_bytes
        self._pieces: list[bytes] = []
        self.complete = not head.chunked and not self._missing
        self.excess = b""
        if self._missing > limit_bytes:
            raise self._too_long()

    @property
    def content(self) -> bytes:
        """The bytes received so far."""
        return b"".join(self._pieces)

    def feed(self, block: bytes) -> int:
        """Add the connection's next bytes.

        Returns:
            How many bytes the body has grown.

        Raises:
            ClientError: the body is too long (413), or its chunks are malformed (400).
        """
        if self._chunks is None:
            piece = block[: self._missing]
            self._missing -= len(piece)
            self._pieces.append(piece)
            self.complete = not self._missing
            self.excess = block[len(piece) :]
            return len(piece)
        try:
            # One object per read: a bytes object for each one-byte chunk would take 40 bytes of memory.
            piece = b"".join(self._chunks.feed(block))
        except InvalidChunk as error:
            raise ClientError("The request's chunked body is malformed.", code="invalid_framing") from error
        except TooLongBody as error:
            raise self._too_long() from error
        self._pieces.append(piece)
        self.complete = self._chunks.complete
        self.excess = self._chunks.excess
        return len(piece)

    def _too_long(self) -> ClientError:
        message = f"The request body is longer than {self._limit_bytes} bytes."
        return ClientError(message, status=413, code="body_too_large")
