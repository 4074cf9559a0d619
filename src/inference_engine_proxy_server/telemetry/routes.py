"""The routes of requests: a small fixed set, so that they can be labels."""

from __future__ import annotations

__all__ = ["OPERATIONS", "OTHER", "PATHS", "route_of"]

OTHER = "other"

PATHS = {
    "/v1/chat/completions": "chat_completions",
    "/chat/completions": "chat_completions",
    "/v1/completions": "completions",
    "/completions": "completions",
    "/completion": "completions",
    "/v1/embeddings": "embeddings",
    "/embeddings": "embeddings",
    "/v1/messages": "messages",
    "/v1/responses": "responses",
    "/v1/rerank": "rerank",
    "/v1/audio/transcriptions": "transcriptions",
    "/v1/models": "models",
    "/v1/realtime": "realtime",
}
"""The route of each path that has one."""

OPERATIONS = {
    "chat_completions": "chat",
    "messages": "chat",
    "responses": "chat",
    "completions": "text_completion",
    "embeddings": "embeddings",
    "rerank": "rerank",
}
"""``gen_ai.operation.name`` of routes, as in OpenTelemetry's conventions; Envoy AI Gateway adds ``rerank``."""


def route_of(path: str) -> str:
    """The route of ``path``."""
    return PATHS.get(path, OTHER)
