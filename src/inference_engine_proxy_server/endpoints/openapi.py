"""Describes the forwarded paths, so that `/docs` shows what clients call.

Only well-known paths are described, with their most important fields. Engines accept many more fields, and all other
paths are forwarded as well.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

__all__ = ["describe_proxied_paths"]

_MODEL = {"type": "string", "description": "The model, served by some backend; see GET /v1/models."}
_STREAM = {"type": "boolean", "default": False, "description": "Answer as server-sent events, token by token."}
_MAX_TOKENS = {"type": "integer", "minimum": 1}
_MESSAGES = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"role": {"type": "string"}, "content": {"type": "string"}},
        "required": ["role", "content"],
    },
}

_PROXIED: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "/v1/chat/completions": (
        "Chat completion (OpenAI)",
        {"model": _MODEL, "messages": _MESSAGES, "stream": _STREAM, "max_tokens": _MAX_TOKENS},
        ["messages"],
    ),
    "/v1/completions": (
        "Text completion (OpenAI)",
        {"model": _MODEL, "prompt": {"type": "string"}, "stream": _STREAM, "max_tokens": _MAX_TOKENS},
        ["prompt"],
    ),
    "/v1/embeddings": ("Embeddings (OpenAI)", {"model": _MODEL, "input": {"type": "string"}}, ["input"]),
    "/v1/responses": (
        "Response (OpenAI)",
        {"model": _MODEL, "input": {"type": "string"}, "stream": _STREAM},
        ["input"],
    ),
    "/v1/messages": (
        "Message (Anthropic)",
        {"model": _MODEL, "messages": _MESSAGES, "stream": _STREAM, "max_tokens": _MAX_TOKENS},
        ["messages", "max_tokens"],
    ),
    "/v1/messages/count_tokens": (
        "Count a message's tokens (Anthropic)",
        {"model": _MODEL, "messages": _MESSAGES},
        ["messages"],
    ),
    "/v1/rerank": (
        "Rerank documents",
        {"model": _MODEL, "query": {"type": "string"}, "documents": {"type": "array", "items": {"type": "string"}}},
        ["query", "documents"],
    ),
    "/tokenize": ("Tokenize (llama.cpp: `content`; vLLM: `prompt` or `messages`)", {"content": {"type": "string"}}, []),
}


def describe_proxied_paths(app: FastAPI) -> None:
    """Add the proxied paths to the OpenAPI document of ``app``, without making them routes."""
    describe_own_paths = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = describe_own_paths()
            for path, (summary, properties, required) in _PROXIED.items():
                schema["paths"][path] = {"post": _operation(summary, properties, required)}
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend the document


def _operation(summary: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    body = {"type": "object", "properties": properties, "required": required, "additionalProperties": True}
    return {
        "tags": ["forwarded to a backend"],
        "summary": summary,
        "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        "responses": {
            "200": {"description": "The engine's answer, byte for byte."},
            "503": {"description": "No backend is available now; see Retry-After."},
        },
    }
