"""Rewrites the events of a continuation, so that they continue an earlier stream."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from inference_engine_proxy_server.resume.events import data_of, event_of, is_done
from inference_engine_proxy_server.resume.transcript import Transcript

__all__ = ["Seam"]

_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_choices = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
_counts = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_text = msgspec.json.Decoder(str | None).decode
_NULL = msgspec.Raw(b"null")
_EMPTY = (b"", b"null", b"[]")


class Seam:
    """The place where one continuation joins its stream.

    The events keep the identity of the stream. The role is not repeated, nor is the text with which some engines begin.
    Usage and timings include what was delivered before.

    Args:
        transcript: of the stream so far; it must have been read to its end.
        seconds: how long the stream had been generating.
    """

    def __init__(self, transcript: Transcript, seconds: float) -> None:
        self._identity = dict(transcript.identity)
        self._drops_role = transcript.role_sent
        self._echo = transcript.text
        self._tokens = transcript.text_events
        self._milliseconds = 1000 * seconds

    def rewrite(self, event: bytes) -> bytes:
        """``event`` as the client should receive it; empty if there is nothing in it for the client.

        Raises:
            msgspec.DecodeError: it is no event of a completion.
        """
        data = data_of(event)
        if data is None or is_done(data):
            return event
        members = _members(data)
        if "choices" not in members:
            return event
        choices = [self._continued(choice) for choice in _choices(members["choices"])]
        left = [choice for choice in choices if choice is not None]
        usage, timings = members.get("usage", _NULL), members.get("timings", _NULL)
        if not left and choices and bytes(usage) in _EMPTY and bytes(timings) in _EMPTY:
            return b""
        rewritten: dict[str, object] = {name: self._identity.get(name, raw) for name, raw in members.items()}
        rewritten["choices"] = left
        if bytes(usage) not in _EMPTY:
            rewritten["usage"] = self._with_delivered(usage)
        if bytes(timings) not in _EMPTY:
            rewritten["timings"] = self._timed(timings)
        return event_of(rewritten)

    def _continued(self, choice: dict[str, msgspec.Raw]) -> dict[str, object] | None:
        """The choice without what the client has; ``None`` if nothing is left."""
        rewritten: dict[str, object] = dict(choice)
        has_news = bytes(choice.get("finish_reason", _NULL)) != b"null"
        if "text" in choice:
            return rewritten if has_news or _text(choice["text"]) else None  # no engine repeats the prompt here
        delta: dict[str, object] = dict(_members(choice["delta"])) if "delta" in choice else {}
        if self._drops_role:
            delta.pop("role", None)
        if "content" in delta:
            text = self._without_echo(_text(delta.pop("content")))  # type: ignore[arg-type]
            if text or not self._drops_role:
                delta["content"] = text
        rewritten["delta"] = delta
        return rewritten if has_news or delta else None

    def _without_echo(self, text: str | None) -> str | None:
        if not text:
            return text
        echo, self._echo = self._echo, ""
        return text[len(echo) :] if echo and text.startswith(echo) else text

    def _with_delivered(self, usage: msgspec.Raw) -> dict[str, object]:
        """The usage of the whole stream: the delivered tokens were generated, and are part of the second prompt."""
        counts: dict[str, object] = dict(_counts(usage))
        prompt, completion = _number(counts, "prompt_tokens"), _number(counts, "completion_tokens")
        delivered = min(self._tokens, prompt)
        counts["prompt_tokens"] = prompt - delivered
        counts["completion_tokens"] = completion + delivered
        if "total_tokens" in counts:
            counts["total_tokens"] = prompt + completion
        details = counts.get("prompt_tokens_details")
        if details is not None and bytes(details) != b"null":  # type: ignore[call-overload]
            cached: dict[str, object] = dict(_counts(details))  # type: ignore[arg-type]
            if "cached_tokens" in cached:
                cached["cached_tokens"] = min(_number(cached, "cached_tokens"), prompt - delivered)
            counts["prompt_tokens_details"] = cached
        return counts

    def _timed(self, timings: msgspec.Raw) -> dict[str, object]:
        """The timings of the whole stream (llama.cpp): of the prompt, only the part that the client sent counts."""
        counts: dict[str, object] = dict(_counts(timings))
        read = _number(counts, "prompt_n") - self._tokens
        counts["prompt_n"] = max(0, read)
        if "cache_n" in counts:
            counts["cache_n"] = max(0, _number(counts, "cache_n") + min(0, read))
        predicted = _number(counts, "predicted_n") + self._tokens
        milliseconds = _number(counts, "predicted_ms") + self._milliseconds
        counts["predicted_n"] = predicted
        counts["predicted_ms"] = milliseconds
        counts["predicted_per_token_ms"] = milliseconds / predicted if predicted else 0
        counts["predicted_per_second"] = 1000 * predicted / milliseconds if milliseconds else 0
        return counts


def _number(counts: Mapping[str, object], name: str) -> float:
    raw = counts.get(name)
    return msgspec.json.decode(raw) or 0 if isinstance(raw, msgspec.Raw) else 0
