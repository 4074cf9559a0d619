"""Any other server with the OpenAI API: the fallback for unknown engines."""

from __future__ import annotations

from typing import ClassVar

from inference_engine_proxy_server.backends.base import BackendState, BaseBackend, ModelEntry, context_lengths

__all__ = ["OpenAIBackend"]

# Answers to /health that concern the path or the key, not the health.
_NOT_ABOUT_HEALTH = frozenset({401, 403, 404, 405, 501})
# Not part of OpenAI's API: vLLM, SGLang and their derivatives; OpenRouter (openrouter 1.3.84, components/model.py) and
# servers that follow it; Mistral (mistralai 3.7.0, models/basemodelcard.py).
_CONTEXT_NAMES = ("max_model_len", "context_length", "max_context_length")


class OpenAIBackend(BaseBackend):
    """Health from ``/health``, or from ``/v1/models`` if that is missing. It never reports a load.

    It stands in for every engine without a class of its own.
    """

    providers: ClassVar[tuple[str, ...]] = ("openai",)

    async def fetch_state(self) -> BackendState:
        """Whether it is live, and its models. A live server counts as ready, unless it answers 429.

        Raises:
            UnreadableState, OSError, TimeoutError: as :class:`Get`, for the path that its health is read from.
        """
        path, status = "/health", (await self.get("/health")).status
        if status in _NOT_ABOUT_HEALTH:
            path, status = "/v1/models", (await self.get("/v1/models")).status
            # The server runs; it wants a key, which clients may have.
            status = 200 if status in (401, 403) else status
        if status == 429:  # its limit of requests is reached
            return BackendState(ready=False, reason=f"busy: GET {path} answered 429")
        if not 200 <= status < 300:
            hint = ", perhaps it is starting" if status == 503 else ""
            if status in _NOT_ABOUT_HEALTH:
                hint = ": it is no engine, or its URL lacks a path"
            return BackendState(ready=False, live=False, reason=f"GET {path} answered {status}{hint}")
        models = await self.fetch_models()
        return BackendState(ready=True, models=models, contexts=context_lengths(models, _context))


def _context(model: ModelEntry) -> object:
    return next((length for name in _CONTEXT_NAMES if (length := model.get(name)) is not None), None)
