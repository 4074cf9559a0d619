"""One streamed chat completion, as strict as an SDK: anything but a complete answer is a failure."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from warm_prefixes.plan import ANSWER_TOKENS, MODEL

__all__ = ["Answer", "Failed", "Message", "ask"]

_PATIENCE_SECONDS = 60.0

Message = dict[str, str]


class Failed(Exception):
    """No answer or an incomplete one; the text is the status or a description."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A complete answer.

    Attributes:
        first_at: when the first token arrived, by the monotonic clock.
        cached_tokens: prompt tokens that the engine reports as cached.
    """

    text: str
    first_at: float
    prompt_tokens: int
    cached_tokens: int
    answer_tokens: int


def ask(port: int, messages: Sequence[Message]) -> Answer:
    """Request a completion on a new connection, because an idle one could be closed just when it is reused.

    Raises:
        Failed: the answer failed.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE_SECONDS)
    try:
        connection.request(
            "POST", "/v1/chat/completions", _body(messages), {"Content-Type": "application/json", "Connection": "close"}
        )
        reply = connection.getresponse()
        if reply.status != http.HTTPStatus.OK:
            raise Failed(str(reply.status))
        return _answer(reply)
    except TimeoutError as error:
        raise Failed("timeout") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Failed(type(error).__name__) from error
    finally:
        connection.close()


def _body(messages: Sequence[Message]) -> bytes:
    body = {
        "model": MODEL,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": ANSWER_TOKENS,
        "temperature": 0,
        "seed": 1,
    }
    return json.dumps(body).encode()


def _answer(reply: http.client.HTTPResponse) -> Answer:
    first_at: float | None = None
    pieces: list[str] = []
    usage: dict[str, Any] = {}
    for line in iter(reply.readline, b""):
        if not line.startswith(b"data: "):
            continue
        if line.startswith(b"data: [DONE]"):
            break
        event = json.loads(line[6:])
        if "error" in event:
            raise Failed("error event")
        piece = "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ()))
        if piece:
            first_at = first_at or time.monotonic()
            pieces.append(piece)
        usage = event.get("usage") or usage
    else:
        raise Failed("broken off")
    if first_at is None or not usage:
        raise Failed("without text or usage")
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Answer("".join(pieces), first_at, usage["prompt_tokens"], cached, usage["completion_tokens"])
