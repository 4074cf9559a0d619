"""An engine that thinks before it answers a stream in the format of its path, or with an error."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from support.engine import STREAM_HEAD, Engine, chunk
from support.fakes.engine import EngineConnection, http_reply

__all__ = ["ERROR", "TEXT", "SlowEngine"]

TEXT = "kin sol"
"""The generated text."""
ERROR = "The prompt is too long."
"""The message of the error."""

_IDENTITY: dict[str, Any] = {"id": "c", "created": 1, "model": "m"}
_MESSAGE: dict[str, Any] = {
    "id": "c", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None,
    "stop_sequence": None, "usage": {"input_tokens": 1, "output_tokens": 1},
}  # fmt: skip
_RESPONSE: dict[str, Any] = {
    "id": "c", "object": "response", "created_at": 1, "model": "m", "output": [], "status": "in_progress",
    "parallel_tool_calls": False, "tool_choice": "auto", "tools": [],
}  # fmt: skip
_DELTA: dict[str, Any] = {
    "type": "response.output_text.delta",
    "item_id": "i",
    "output_index": 0,
    "content_index": 0,
    "logprobs": [],
}
_EVENTS: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {**_IDENTITY, "object": "chat.completion.chunk", "choices": [{"index": 0, "finish_reason": None, **delta}]}
        for delta in ({"delta": {"role": "assistant", "content": TEXT}}, {"delta": {}, "finish_reason": "stop"})
    ],
    "/v1/completions": [
        {**_IDENTITY, "object": "text_completion", "choices": [{"index": 0, "text": TEXT, "finish_reason": "stop"}]}
    ],
    "/v1/messages": [
        {"type": "message_start", "message": _MESSAGE},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": TEXT}},
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}},
        {"type": "message_stop"},
    ],
    "/v1/responses": [
        {"type": "response.created", "sequence_number": 0, "response": _RESPONSE},
        {**_DELTA, "sequence_number": 1, "delta": TEXT},
        {"type": "response.completed", "sequence_number": 2, "response": {**_RESPONSE, "status": "completed"}},
    ],
}


class SlowEngine(Engine):
    """Sends nothing for ``seconds``, then a stream, or an error with ``status``."""

    def __init__(self, seconds: float, status: int = 200) -> None:
        super().__init__(self._answer, owner="vllm")
        self._seconds = seconds
        self._status = status

    async def _answer(self, connection: EngineConnection) -> None:
        path = connection.requests[-1].split(b" ", 2)[1].decode().partition("?")[0]
        await asyncio.sleep(self._seconds)
        if self._status != 200:
            connection.send(http_reply(_error(path, self._status), self._status))
            return
        events = [_event(path, members) for members in _EVENTS[path]]
        if path.endswith("/completions"):
            events.append(b"data: [DONE]\n\n")
        connection.send(STREAM_HEAD, *map(chunk, events), b"0\r\n\r\n")


def _event(path: str, members: dict[str, Any]) -> bytes:
    name = "" if path.endswith("/completions") else f"event: {members['type']}\n"
    return f"{name}data: {json.dumps(members)}\n\n".encode()


def _error(path: str, status: int) -> bytes:
    error: dict[str, Any] = {"type": "invalid_request_error", "message": ERROR}
    members = {"type": "error", "error": error} if path == "/v1/messages" else {"error": {**error, "code": status}}
    return json.dumps(members).encode()
