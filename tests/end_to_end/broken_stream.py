"""An engine that dies during a stream on any path, either between two events or inside one."""

from __future__ import annotations

import json
from typing import Any

from support.fakes.engine import EngineConnection, FakeEngine, http_reply

__all__ = ["TEXT", "DyingEngine"]

TEXT = "kin"
"""The generated text of each event before the engine dies."""

_MODELS = b'{"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "unknown-engine"}]}'
_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\naccess-control-allow-origin: *\r\n"
    b"transfer-encoding: chunked\r\n\r\n"
)
_CHOICE = {"index": 0, "delta": {"role": "assistant", "content": TEXT}, "finish_reason": None}
_CHAT: list[dict[str, Any]] = [
    {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [_CHOICE]}
] * 2
_MESSAGE: dict[str, Any] = {
    "id": "c", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None,
    "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1},
}  # fmt: skip
_MESSAGES: list[dict[str, Any]] = [
    {"type": "message_start", "message": _MESSAGE},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": TEXT}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": TEXT}},
]


class DyingEngine(FakeEngine):
    """Begins a stream of events, then breaks the connection.

    Args:
        inside: whether it breaks inside its last event; otherwise after that event.
    """

    def __init__(self, *, inside: bool) -> None:
        super().__init__(self._serve)
        self._inside = inside

    async def _serve(self, connection: EngineConnection) -> None:
        while True:
            target = (await connection.request()).split(b" ", 2)[1]
            if target == b"/v1/models":
                connection.send(http_reply(_MODELS))
            elif target in (b"/health", b"/metrics", b"/props", b"/is_paused", b"/version"):
                connection.send(http_reply(b"{}", 404))
            else:
                connection.send(_HEAD, *map(_chunk, self._events(target)))
                connection.finish()

    def _events(self, target: bytes) -> list[bytes]:
        if target.startswith(b"/v1/messages"):
            events = [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in _MESSAGES]
        else:
            events = [f"data: {json.dumps(event)}\n\n".encode() for event in _CHAT]
        return [*events[:-1], events[-1][:-20]] if self._inside else events


def _chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)
