"""One streamed chat completion on a new connection."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Sequence

from completions.answers import Answer, AnswerReader, Failed, Message
from warm_prefixes.plan import ANSWER_TOKENS, MODEL

__all__ = ["ask"]

_PATIENCE_SECONDS = 60.0


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
        reader = AnswerReader()
        for line in iter(reply.readline, b""):
            reader.read(line, time.monotonic())
        return reader.answer()
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
