"""Asks a backend of unknown engine, while the engines look for their marks in its replies."""

from __future__ import annotations

from typing import Any

from inference_engine_proxy_server.backends.replies import (
    Get,
    ModelEntry,
    Reply,
    UnreadableState,
    decoded,
    parse_models,
)

__all__ = ["Probe"]


class Probe:
    """One identification of a backend. It asks for no path twice, however many engines need the reply.

    Args:
        get: asks the backend.

    Attributes:
        is_incomplete: a question got no answer in time. No further ones are sent, so one that hangs costs one deadline.
    """

    def __init__(self, get: Get) -> None:
        self.is_incomplete = False
        self._get = get
        self._replies: dict[str, Reply | None] = {}

    async def list_models(self) -> Reply:
        """The reply to ``GET /v1/models``, the first question of every identification.

        Raises:
            UnreadableState, OSError, TimeoutError: as :class:`Get`.
        """
        reply = self._replies["/v1/models"] = await self._get("/v1/models")
        return reply

    async def get(self, path: str) -> Reply | None:
        """The reply to a GET of ``path``, whatever its status; ``None`` without one."""
        if path not in self._replies:
            if self.is_incomplete:
                return None
            try:
                self._replies[path] = await self._get(path)
            except (OSError, UnreadableState) as error:  # TimeoutError is an OSError
                self.is_incomplete = isinstance(error, OSError)
                self._replies[path] = None
        return self._replies[path]

    async def json(self, path: str) -> dict[str, Any]:
        """The JSON object of a reply with status 200 to a GET of ``path``; empty without one."""
        reply = await self.get(path)
        return (decoded(reply.body, dict[str, Any]) if reply and reply.status == 200 else None) or {}

    async def text(self, path: str) -> bytes:
        """The body of a reply with status 200 to a GET of ``path``; empty without one."""
        reply = await self.get(path)
        return reply.body if reply and reply.status == 200 else b""

    async def models(self) -> tuple[ModelEntry, ...]:
        """The entries of ``GET /v1/models``; empty without a list."""
        try:
            return parse_models(await self.text("/v1/models"))
        except UnreadableState:
            return ()
