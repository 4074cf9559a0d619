"""Requests of Ollama's clients: forwarded like all others, and explained if no engine serves Ollama's API.

llama.cpp and vLLM answer such a request with a 404 without a reason. An engine that does serve the API, such as Ollama
itself, answers 404 about a model; its reply names the model and is relayed.
"""

from __future__ import annotations

from inference_engine_proxy_server.errors import ClientError
from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.late_reply import LateReply
from inference_engine_proxy_server.wire.reply_sink import ChunkSink

__all__ = ["OllamaReply", "explained", "is_ollama_path"]

_MISSING = frozenset({404, 405, 501})  # of a path that an engine does not serve
_OF_OTHERS = ("/api/v0/", "/api/v1/", "/api/latest/", "/api/extra/")  # LM Studio's, KoboldCpp's and TabbyAPI's
_KEPT_BYTES = 16 * 1024  # a longer body is no such reply
_EXPLANATION = (
    "This is inference-engine-proxy-server, which offers the OpenAI API (and Anthropic's) below /v1. None of its "
    "engines serves Ollama's API. In your client, add an OpenAI-compatible connection with the base URL "
    "http://ADDRESS-OF-THIS-SERVER/v1 in place of an Ollama connection."
)


def is_ollama_path(path: str) -> bool:
    """Whether ``path`` belongs to Ollama's API."""
    return path == "/api" or (path.startswith("/api/") and not path.startswith(_OF_OTHERS))


def explained(error: ClientError) -> ClientError:
    """``error``, the reason why no backend gets a request for Ollama's API, with an explanation if it is a 404."""
    if error.status != 404:
        return error
    return ClientError(f"{error.message} {_EXPLANATION}", status=404, code=error.code)


class OllamaReply(LateReply):
    """Relays a reply, except one that says that the engine does not serve the path."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(exchange)
        self._opening: tuple[int, bytes, bytes, int | None] | None = None  # of the reply that is held back
        self._held = bytearray()

    @property
    def sent_bytes(self) -> int:
        """Includes what is held back, so that it counts as progress of the backend."""
        return super().sent_bytes + len(self._held)

    @property
    def chunks(self) -> ChunkSink | None:
        """The exchange's; ``None`` while a reply is held back."""
        return super().chunks if self._opening is None else None

    def begin(self, status: int, reason: bytes, fields: bytes, content_length: int | None) -> None:
        """Open the reply, or hold it back."""
        if self.exchange.begun:
            super().begin(status, reason, fields, content_length)
            return
        self.status = status
        if status in _MISSING:
            self._opening = (status, reason, fields, content_length)
        else:
            self.exchange.begin(status, reason, fields, content_length)

    def flush(self) -> None:
        """Send the header section, unless it is held back."""
        if self._opening is None:
            self.exchange.flush()

    def write(self, payload: bytes) -> None:
        """Take a piece of the body."""
        if self._opening is None:
            super().write(payload)
            return
        self._held += payload
        if len(self._held) > _KEPT_BYTES:
            opening, self._opening = self._opening, None
            self.exchange.begin(*opening)
            self.exchange.write(bytes(self._held))
            self._held.clear()

    def end(self) -> None:
        """The reply is complete: relay or replace what was held back."""
        if self._opening is None:
            super().end()
        elif b"model" in self._held:
            self.exchange.write_whole(*self._opening[:3], bytes(self._held))
            self.exchange.end()
        else:
            self.exchange.fail(ClientError(_EXPLANATION, status=404, code="no_ollama_api"))
