"""The record of a finished request, which the access log and the metrics receive."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import msgspec

from inference_engine_proxy_server.wire.outcome import Outcome

__all__ = ["RequestRecord", "grouped"]

_Key = TypeVar("_Key")


class RequestRecord(msgspec.Struct, frozen=True, gc=False):
    """One finished request.

    Attributes:
        client: address and port of the client.
        method, path: of the request; the path without its query.
        status: of the reply; 499 if the client left before there was one.
        outcome: how the exchange ended.
        backend: base URL of the backend that served the request; ``None`` for a reply of the proxy itself.
        model: the model that the request names, as engines know it; ``None`` when it names none or nothing read it.
        first_byte_seconds: from the complete request to the reply's first byte, of a stream: its first event; ``None``
            without a reply.
        seconds: from the complete request to the end of the reply.
        sent_bytes: length of the reply, header section included.
        request_id: the value of ``x-request-id``.
        resumes: how often its stream was continued on another backend.
        alias: the client's name for the model, if that is another one; ``None`` if it is not.
        termination: why the request ended: ``complete``; ``error_status``, a complete reply with a status of 400 or
            more, which an engine or a page of the proxy gave; ``client_left``; or the code of the proxy's own error.
        is_stream: whether the reply was a stream of events.
        queue_seconds: how long it waited in the proxy for a free backend, of ``seconds``.
        attempts: how often it was sent to a backend.
        prompt_tokens, cached_tokens, output_tokens: of the whole prompt; the part of it that was in the engine's cache;
            of the answer. ``None`` for what the reply does not report.
        key: name of its API key; ``None`` without one.
        policy: the policy, or other rule, that chose the backend of the latest attempt; ``None`` without an attempt.
    """

    client: str
    method: str
    path: str
    status: int
    outcome: Outcome
    backend: str | None
    model: str | None
    first_byte_seconds: float | None
    seconds: float
    sent_bytes: int
    request_id: str
    resumes: int = 0
    alias: str | None = None
    termination: str = "complete"
    is_stream: bool = False
    queue_seconds: float = 0.0
    attempts: int = 0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    key: str | None = None
    policy: str | None = None


def grouped(
    records: Iterable[RequestRecord], key_of: Callable[[RequestRecord], _Key]
) -> dict[_Key, list[RequestRecord]]:
    """The records by their keys, those of each key in their order."""
    groups: dict[_Key, list[RequestRecord]] = {}
    for record in records:
        key = key_of(record)
        group = groups.get(key)
        if group is None:
            groups[key] = [record]
        else:
            group.append(record)
    return groups
