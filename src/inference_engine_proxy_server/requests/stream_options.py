"""Asks an engine for the usage of a stream (OpenAI's ``stream_options``)."""

from __future__ import annotations

import msgspec

from inference_engine_proxy_server.requests.content import all_members

__all__ = ["asking_for_usage"]

_CONTINUOUS = "continuous_usage_stats"  # vLLM: then every event has the usage, which clients would notice
_options_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw] | None)


def asking_for_usage(body: bytes) -> bytes | None:
    """``body`` with ``stream_options.include_usage``; ``None`` if it has that already, or is not a valid JSON object.

    All bytes of ``body`` stay as they are. The option is appended: of equal names, all engines use the last one.
    """
    members = all_members(body)
    if members is None:
        return None
    raw = members.get("stream_options")
    try:
        options = {} if raw is None else _options_decoder.decode(raw) or {}
        if bytes(options.pop("include_usage", b"")) == b"true":
            return None
    except msgspec.DecodeError:  # the engine rejects it
        return None
    options.pop(_CONTINUOUS, None)
    asked = msgspec.json.encode({**options, "include_usage": True})
    end = body.rindex(b"}")
    return b'%b%b"stream_options":%b%b' % (body[:end], b"," if members else b"", asked, body[end:])
