"""A resumable stream without a network: what engines write goes in, what the client receives comes out."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable

from inference_engine_proxy_server.resume.dialects import DIALECTS
from inference_engine_proxy_server.resume.resumable_stream import ResumableStream
from inference_engine_proxy_server.wire.client_side import ClientReceiver
from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.framing import ChunkedBody, one_chunk
from inference_engine_proxy_server.wire.request_head import HeadLimits, parse_request_head

__all__ = ["Client", "Stream"]

_LIMITS = HeadLimits(line_bytes=1000, total_bytes=1000, field_count=10)
_EVENT_STREAM = b"content-type: text/event-stream\r\n"


class Client:
    """The client's side of an exchange: records what it receives."""

    is_behind = False

    def __init__(self) -> None:
        self.received = bytearray()
        self.is_done = False
        self.clock: Callable[[], float] = map(float, itertools.count(1)).__next__

    def write(self, block: bytes) -> None:
        self.received += block

    def comment_sent(self) -> None:
        """Nothing to record."""

    def switch_protocols(self, receiver: ClientReceiver) -> tuple[asyncio.Transport, bytes]:
        raise AssertionError

    def exchange_done(self, exchange: Exchange) -> None:
        del exchange
        self.is_done = True

    @property
    def body(self) -> bytes:
        return b"".join(ChunkedBody().feed(bytes(self.received).partition(b"\r\n\r\n")[2]))


class Stream:
    """A resumable stream with its client."""

    def __init__(self, path: str = "/v1/chat/completions") -> None:
        self.client = Client()
        head = parse_request_head(b"POST %b HTTP/1.1\r\nHost: a\r\n" % path.encode(), _LIMITS)
        exchange = Exchange(self.client, head, b"", "id-1", "1.2.3.4:5")
        self.sink = ResumableStream(exchange, DIALECTS[path], {}, self.client.clock)

    def relay(self, payload: bytes) -> None:
        self.sink.begin(200, b" OK", _EVENT_STREAM, None)
        self.sink.write(payload)

    def relay_pieces(self, pieces: Iterable[bytes]) -> None:
        """As :meth:`relay`, as a backend's connection does with what it reads: whole chunks take the direct path."""
        self.sink.begin(200, b" OK", _EVENT_STREAM, None)
        for piece in pieces:
            direct = self.sink.pass_through
            if direct is None:
                self.sink.write(piece)
                continue
            chunk = one_chunk(piece)
            direct.sent_bytes += len(chunk)
            direct.last_block = chunk
            direct.write_through(chunk)
