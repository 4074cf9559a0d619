"""Takes the usage event out of a stream whose client did not ask for it.

With ``stream_options.include_usage``, an engine sends one more event before ``[DONE]``: ``choices`` is empty, and
``usage`` has the tokens of the request (OpenAI's reference of chat completions, "stream_options").
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from inference_engine_proxy_server.resume.events import MALFORMED, data_of, split_events
from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.framing import ChunkedBody, last_chunk, one_chunk

__all__ = ["UsageEventRemover"]

_EVENT_END = b"\n\n\r\n"  # of an event and of its chunk
_USAGE = b'"usage"'
_MOST_HELD_BYTES = 64 * 1024  # of an unfinished event; a longer one is no usage


class _Event(msgspec.Struct):
    choices: list[msgspec.Raw] | None = None
    usage: dict[str, msgspec.Raw] | None = None


_read_event = msgspec.json.Decoder(_Event).decode


class UsageEventRemover:
    """A :class:`~.reply_observers.ReplyEditor` for one request.

    Whole events pass at once; an unfinished event is held until it is complete.

    Args:
        exchange: its reply has not begun. A reply that is not sent in chunks is not edited.
    """

    __slots__ = ("_exchange", "_held")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._held = b""

    def edit(self, block: bytes) -> bytes:
        """``block``, which consists of whole chunks, without usage events; empty if nothing is left."""
        if not self._exchange.takes_chunks or self._passes(block):
            return block
        body = ChunkedBody()
        payload = b"".join(body.feed(block))
        held, self._held = self._held, b""
        events, rest = split_events(held + payload)
        if body.complete or len(rest) > _MOST_HELD_BYTES:
            events.append(rest)
        else:
            self._held = rest
        kept = b"".join(event for event in events if not _is_usage(event))
        if kept == payload:
            return block
        return (one_chunk(kept) if kept else b"") + (last_chunk if body.complete else b"")

    def write_function(self, write: Callable[[bytes], None]) -> Callable[[bytes], None]:
        """A function that edits one whole chunk of the direct path, which counts as sent already, and writes it."""
        exchange = self._exchange

        def edit_and_write(chunk: bytes) -> None:
            if self._passes(chunk):
                write(chunk)
                return
            left = self.edit(chunk)
            exchange.sent_bytes += len(left) - len(chunk)
            exchange.last_block = left
            if left:
                write(left)

        return edit_and_write

    def _passes(self, block: bytes) -> bool:
        return not self._held and _USAGE not in block and block.endswith(_EVENT_END)


def _is_usage(event: bytes) -> bool:
    data = data_of(event) if _USAGE in event else None
    if data is None:
        return False
    try:
        found = _read_event(data)
    except MALFORMED:
        return False
    return found.choices == [] and found.usage is not None
