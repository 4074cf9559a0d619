"""Any other server with the OpenAI API: the fallback for unknown engines."""

from __future__ import annotations

from typing import ClassVar

from inference_engine_proxy_server.backends.base import BackendState, BaseBackend, context_lengths

__all__ = ["OpenAIBackend"]

# Answers to /health that concern the path or the key, not the health.
_NOT_ABOUT_HEALTH = frozenset({401, 403, 404, 405, 501})


class OpenAIBackend(BaseBackend):
    """Health from ``/health``, or from ``/v1/models`` if that is missing. It never reports a load.

    It stands in for every engine without a class of its own.
    """

    providers: ClassVar[tuple[str, ...]] = ("openai",)

    async def fetch_state(self) -> BackendState:
        """Whether it is live, and its models. A live server counts as ready, because nothing else is known.

        Raises:
            UnreadableState, OSError, TimeoutError: as :class:`Get`, for the path that its health is read from.
        """
        path, status = "/health", (await self.get("/health")).status
        if status in _NOT_ABOUT_HEALTH:
            path, status = "/v1/models", (await self.get("/v1/models")).status
            # The server runs; it wants a key, which clients may have.
            status = 200 if status in (401, 403) else status
        if not 200 <= status < 300:
            hint = ", perhaps it is starting" if status == 503 else ""
            if status in _NOT_ABOUT_HEALTH:
                hint = ": it is no engine, or its URL lacks a path"
            return BackendState(ready=False, live=False, reason=f"GET {path} answered {status}{hint}")
        models = await self.fetch_models()
        # Not part of OpenAI's API, but vLLM, SGLang and their derivatives report it.
        contexts = context_lengths(models, lambda model: model.get("max_model_len"))
        return BackendState(ready=True, models=models, contexts=contexts)
