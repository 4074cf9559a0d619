"""How the APIs in which an engine generates text name the same parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from inference_engine_proxy_server.config.parameters import ParameterPath

__all__ = ["DIALECTS", "EFFORT", "LIMIT", "LIMITS", "Dialect"]

LIMIT = "max_tokens"
"""The name of the answer's length limit in the fleet file; each path has it under its own name."""

LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n_predict")
"""All names of this limit. Engines accept more than one of them, so a limit that is set removes the others."""

EFFORT = ("reasoning_effort",)
"""The reasoning effort in the fleet file."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """One API.

    Attributes:
        limit: its name for the length limit of an answer.
        effort: its place for the reasoning effort.
        system: the member that holds the system prompt, ``messages`` if a message does; ``None`` if the API has none.
        turns: the member that holds the messages.
    """

    limit: str
    effort: ParameterPath = EFFORT
    system: str | None = None
    turns: str = "messages"


_CHAT = Dialect("max_tokens", system="messages")
_COMPLETION = Dialect("max_tokens")
_LLAMACPP = Dialect("n_predict")
_MESSAGES = Dialect("max_tokens", effort=("output_config", "effort"), system="system")
_RESPONSES = Dialect("max_output_tokens", effort=("reasoning", "effort"), system="instructions", turns="input")

DIALECTS: Mapping[str, Dialect] = MappingProxyType(
    {
        "/v1/chat/completions": _CHAT,
        "/chat/completions": _CHAT,
        "/v1/completions": _COMPLETION,
        "/completions": _LLAMACPP,
        "/completion": _LLAMACPP,
        "/infill": _LLAMACPP,
        "/v1/messages": _MESSAGES,
        "/v1/responses": _RESPONSES,
        "/responses": _RESPONSES,
    }
)
"""The API of each path whose parameters may be changed."""
