"""The request that continues a stream.

Sources: vLLM, ``ChatCompletionRequest`` (``continue_final_message`` and ``add_generation_prompt`` must be set
together). llama.cpp continues a trailing assistant message in any case; some builds repeat its text in the first event,
which :mod:`~.seam` removes.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

__all__ = ["continued", "tokens_left", "wants_usage"]

_LIMITS = ("max_tokens", "max_completion_tokens", "n_predict")
_MINIMUM = "min_tokens"

Members = Mapping[str, msgspec.Raw]


def tokens_left(members: Members, delivered: int) -> int | None:
    """How many tokens the continuation may have; ``None`` if the request sets no limit.

    Args:
        members: of the original request.
        delivered: tokens delivered so far.
    """
    limits = [limit for name in _LIMITS if (limit := _number(members, name)) is not None and limit >= 0]
    return min(limits) - delivered if limits else None


def continued(members: Members, text: str, delivered: int) -> bytes:
    """The body of the request that continues an answer after ``text``.

    Args:
        members: of the original request, which breaks no rule of :mod:`~.rules`.
        text: the delivered text. If it is empty, the answer starts anew.
        delivered: tokens of ``text``, by which limits are reduced.
    """
    if not text:
        return msgspec.json.encode(members)
    body: dict[str, object] = dict(members)
    for name in (*_LIMITS, _MINIMUM):
        limit = _number(members, name)
        if limit is not None and limit >= 0:
            body[name] = max(0, limit - delivered)
    if "messages" in members:
        messages = msgspec.json.decode(members["messages"], type=list[msgspec.Raw])
        body["messages"] = [*messages, {"role": "assistant", "content": text}]
        body["continue_final_message"] = True
        body["add_generation_prompt"] = False
    else:
        body["prompt"] = msgspec.json.decode(members["prompt"], type=str) + text
    return msgspec.json.encode(body)


def wants_usage(members: Members) -> bool:
    """Whether the client wants the usage at the end of the stream."""
    options = members.get("stream_options")
    found = None if options is None else msgspec.json.decode(options)
    return isinstance(found, dict) and bool(found.get("include_usage"))


def _number(members: Members, name: str) -> int | None:
    raw = members.get(name)
    try:
        return None if raw is None else msgspec.json.decode(raw, type=int | None)
    except msgspec.DecodeError:
        return None
