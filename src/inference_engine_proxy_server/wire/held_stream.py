"""The start of an event stream, held back until its first event.

Engines send the header section of a stream before they read the prompt (llama.cpp) or without having done any work. As
long as the client has not received it, another backend can still serve the request.
"""

from __future__ import annotations

import re

from inference_engine_proxy_server.wire.framing import ChunkedBody

__all__ = ["HeldStream"]

_UNFINISHED_BYTES = 512  # of a first event; a longer one is sent as the engine produces it
_HELD_BYTES = 64 * 1024  # then the stream goes on to the client, event or not
_EVENT_END = re.compile(rb"\n\r?\n|\r\r")
_DATA = re.compile(rb"(?:^|[\r\n])(?:\xef\xbb\xbf)?data(?:[:\r\n]|$)")
_PING = re.compile(rb"(?:^|[\r\n])event: ?ping(?:[\r\n]|$)")  # Anthropic's keep-alive has a data field


class HeldStream:
    """Keeps the first bytes of a stream's body and looks for its first event.

    Comments, pings, and blocks without a ``data`` field are no events.

    Args:
        chunked: whether the body is chunked.
        content_length: the body's length in bytes; ``None`` if it is chunked or ends with the connection.

    Attributes:
        body: the chunked body, parsed as far as it is held; ``None`` if the body is not chunked.
        payload: the held payload, without what :meth:`take_keep_alives` returned.
        is_rewritten: something was taken out, so only ``payload`` may be sent, not ``blocks``.
    """

    __slots__ = ("_blocks", "_bytes", "_content_length", "_keep_alives", "_unfinished", "body", "is_rewritten")

    def __init__(self, *, chunked: bool, content_length: int | None) -> None:
        self.body = ChunkedBody() if chunked else None
        self.is_rewritten = False
        self._content_length = content_length
        self._blocks: list[bytes] = []
        self._bytes = 0
        self._keep_alives: list[bytes] = []
        self._unfinished = b""

    @property
    def block(self) -> bytes:
        """All held bytes as they came, framing included."""
        return b"".join(self._blocks)

    @property
    def payload(self) -> bytes:
        """See above."""
        return b"".join(self._keep_alives) + self._unfinished

    def take(self, data: bytes) -> bool:
        """Hold ``data`` back; whether the stream need be held no longer.

        Raises:
            InvalidChunk: the body is not chunked as it should be.
        """
        self._blocks.append(data)
        self._bytes += len(data)
        self._unfinished += data if self.body is None else b"".join(self.body.feed(data))
        while (end := _EVENT_END.search(self._unfinished)) is not None:
            if _is_event(self._unfinished[: end.start()]):
                return True
            self._keep_alives.append(self._unfinished[: end.end()])
            self._unfinished = self._unfinished[end.end() :]
        is_complete = self._bytes == self._content_length if self.body is None else self.body.complete
        is_long_event = len(self._unfinished) > _UNFINISHED_BYTES and _is_event(self._unfinished)
        return is_complete or is_long_event or self._bytes > _HELD_BYTES

    def take_keep_alives(self) -> bytes:
        """Remove what came before the first event, such as comments, and return it; nothing of a body with a length."""
        keep_alives = b"".join(self._keep_alives) if self._content_length is None else b""
        if keep_alives:
            self._keep_alives.clear()
            self._blocks.clear()
            self._bytes = len(self._unfinished)
            self.is_rewritten = True
        return keep_alives


def _is_event(block: bytes) -> bool:
    return _DATA.search(block) is not None and _PING.search(block) is None
