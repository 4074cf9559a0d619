"""The attributes of a request's span, by OpenTelemetry's semantic conventions; those of the proxy begin with its name.

Nothing that clients or models write is among them, apart from names of models, ids, and parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from inference_engine_proxy_server.backends.reply_facts import ReplyFacts
from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.requests.content import all_members
from inference_engine_proxy_server.tracing.reply_names import ReplyNames

__all__ = ["OPERATIONS", "PREFIX", "of_generation", "of_parameters", "of_reply", "of_request", "short"]

PREFIX = "inference_proxy."
OPERATIONS: Mapping[str, str] = {
    "/v1/chat/completions": "chat",
    "/chat/completions": "chat",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
    "/responses": "chat",
    "/api/chat": "chat",
    "/v1/completions": "text_completion",
    "/completions": "text_completion",
    "/completion": "text_completion",
    "/infill": "text_completion",
    "/api/generate": "text_completion",
    "/v1/embeddings": "embeddings",
    "/embeddings": "embeddings",
    "/embedding": "embeddings",
    "/api/embed": "embeddings",
    "/api/embeddings": "embeddings",
}
"""The value of ``gen_ai.operation.name``, by path."""

_LONGEST = 256  # characters of a text from outside
_MOST_NUMBER = 2**63  # OTLP's integers have 64 bits
_METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})
_PARAMETERS: Mapping[str, tuple[str, type[Any]]] = {
    "temperature": ("gen_ai.request.temperature", float),
    "top_p": ("gen_ai.request.top_p", float),
    "top_k": ("gen_ai.request.top_k", int),
    "seed": ("gen_ai.request.seed", int),
    "n": ("gen_ai.request.choice.count", int),
    "frequency_penalty": ("gen_ai.request.frequency_penalty", float),
    "presence_penalty": ("gen_ai.request.presence_penalty", float),
}


def of_request(request: ProxiedRequest, scheme: str) -> dict[str, Any]:
    """The attributes that every span has from its start, so that samplers may use them.

    Args:
        scheme: ``http`` or ``https``, of the proxy's port.
    """
    head = request.head
    attributes = {
        "http.request.method": head.method,
        "url.scheme": scheme,
        "url.path": short(head.path),
        "client.address": _without_port(request.client),
        f"{PREFIX}request_id": request.request_id,
    }
    if head.method not in _METHODS:
        attributes |= {"http.request.method": "_OTHER", "http.request.method_original": short(head.method)}
    if head.path in OPERATIONS:
        attributes |= {"http.route": head.path, "gen_ai.operation.name": OPERATIONS[head.path]}
    return attributes


def of_parameters(request: ProxiedRequest) -> dict[str, Any]:
    """The parameters in the body of a request for generated text or embeddings, as the client states them."""
    members = all_members(request.body) or {}
    attributes: dict[str, Any] = {"gen_ai.request.stream": request.content.is_streamed}
    limit = request.content.answer_tokens
    if limit is not None and limit < _MOST_NUMBER:
        attributes["gen_ai.request.max_tokens"] = limit
    for name in members.keys() & _PARAMETERS.keys():
        attribute, kind = _PARAMETERS[name]
        try:
            value = msgspec.json.decode(members[name], type=kind)
        except (msgspec.DecodeError, RecursionError):
            continue  # a mistake, which the engine reports, or null
        if abs(value) < _MOST_NUMBER:
            attributes[attribute] = value
    return attributes


def of_reply(request: ProxiedRequest) -> dict[str, Any]:
    """The attributes that every span has when its request is over."""
    access = request.access
    model = request.alias or request.model
    attributes = {
        "http.response.status_code": request.status,
        "gen_ai.request.model": None if model is None else short(model),
        f"{PREFIX}outcome": request.outcome.value,
        f"{PREFIX}backend": request.backend,
        f"{PREFIX}api_key": None if access is None else access.key.name,
        f"{PREFIX}resumes": request.resumes or None,
        f"{PREFIX}sent_bytes": request.sent_bytes,
    }
    return {name: value for name, value in attributes.items() if value is not None}


def of_generation(provider: str | None, facts: ReplyFacts, names: ReplyNames) -> dict[str, Any]:
    """The attributes of an answer or an embedding.

    Args:
        provider: the kind of engine that served it; ``None`` if none did, or if it is not known.
        facts, names: what the reply says of itself.
    """
    attributes = {
        "gen_ai.provider.name": provider,
        "gen_ai.response.id": names.id,
        "gen_ai.response.model": names.model,
        "gen_ai.response.finish_reasons": names.finish_reasons or None,
        "gen_ai.usage.input_tokens": facts.prompt_tokens,
        "gen_ai.usage.output_tokens": facts.answer_tokens,
        "gen_ai.usage.cache_read.input_tokens": facts.cached_tokens,
    }
    return {name: value for name, value in attributes.items() if value is not None}


def short(text: str) -> str:
    """``text`` from outside, cut to a length that a span can bear."""
    return text[:_LONGEST]


def _without_port(address: str) -> str:
    if address.startswith("["):
        return address[1:].partition("]")[0]
    return address.partition(":")[0] if address.count(":") == 1 else address
