"""Replies that no engine expects: useless ones, and damaged forms of useful ones."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

from inference_engine_proxy_server.backends.base import Reply, UnreadableState
from recorded import recorded
from recorded.cases import Answer

__all__ = ["USELESS", "variants"]

USELESS: dict[str, Answer] = {
    "timeout": TimeoutError(),
    "refused": ConnectionRefusedError(),
    "reset": ConnectionResetError(),
    "name not known": OSError("Name or service not known"),
    "not HTTP": UnreadableState("not HTTP"),
    "empty": Reply(200, b""),
    "no content": Reply(204, b""),
    "redirect": Reply(302, b""),
    "key required": Reply(401, b'{"error":"Unauthorized"}'),
    "not found": Reply(404, b'{"detail":"Not Found"}'),
    "broken": Reply(500, b"Internal Server Error"),
    "loading": recorded("llama-server", "health-loading"),
    "unknown status": Reply(999, b""),
    "HTML": Reply(200, b"<!doctype html><html><body>Welcome</body></html>"),
    "1 MiB of junk": Reply(200, bytes(range(256)) * 4096),
    "1 MiB of nesting": Reply(200, b'{"data":[{"id":' + b"[" * 2**20),
    "1 MiB of hidden nesting": Reply(200, b'{"is_paused":true,"x":' + b'{"a":' * 2**18),
    "NUL": Reply(200, b"\x00" * 4096),
    "not UTF-8": Reply(200, b'{"data":[{"id":"\xff\xfe","owned_by":"\xc3"}]}'),
    "JSON null": Reply(200, b"null"),
    "JSON number": Reply(200, b"1" * 5000),
    "JSON array": Reply(200, b"[[], {}, 1]"),
    "empty array": Reply(200, b"[]"),
    "empty object": Reply(200, b"{}"),
    "JSON of another shape": Reply(200, b'{"data": {"id": 1}, "is_paused": 7, "total_slots": -3}'),
    "JSON entries of another shape": Reply(200, b'{"data": [{"id": 1}, {"id": "m", "owned_by": [], "status": 3}]}'),
    "half a JSON": Reply(200, b'{"data": [{"id": "m"'),
}
_SAMPLE = re.compile(rb"(?m)^([a-zA-Z_:][\w:]*(?:\{.*\})?) \S+")
_ODD_VALUES: tuple[object, ...] = (-5, 0, 10**400, 1.5, "7", None, [], {}, True)


def spoiled(body: bytes) -> Iterator[bytes]:
    """Variants of a page: halves of it, and odd values in its metrics or its JSON."""
    yield body[: len(body) // 2]
    yield body[len(body) // 2 :]
    try:
        document = json.loads(body)
    except ValueError:
        for value in (b"NaN", b"+Inf", b"-Inf", b"-5", b"0", b"0.5", b"1e308", b"", b"x", b"1_000", b"1e400"):
            yield _SAMPLE.sub(rb"\1 " + value, body)
        signs = itertools.cycle((b" +Inf", b" -Inf"))
        yield _SAMPLE.sub(lambda found: found[1] + next(signs), body)
        yield _SAMPLE.sub(lambda found: found[0] + b"\n" + found[1] + b" +Inf\n" + found[1] + b" -Inf", body)
    else:
        for odd in _ODD_VALUES:
            yield from (json.dumps(spoiled_once).encode() for spoiled_once in with_one_value(document, odd))


def with_one_value(value: Any, odd: object) -> Iterator[Any]:
    """Copies of ``value``, each with ``odd`` in place of one string, number, constant, list or object in it."""
    yield odd
    if isinstance(value, dict):
        yield from ({**value, key: other} for key, one in value.items() for other in with_one_value(one, odd))
    elif isinstance(value, list):
        for at, one in enumerate(value):
            yield from ([*value[:at], other, *value[at + 1 :]] for other in with_one_value(one, odd))


def variants(answer: Answer) -> Iterator[Answer]:
    """Every useless answer, and spoiled forms of a useful one."""
    yield from USELESS.values()
    if isinstance(answer, Reply) and answer.body:
        yield from (Reply(answer.status, body, answer.fields) for body in spoiled(answer.body))
