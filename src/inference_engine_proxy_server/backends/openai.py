"""Any other server that speaks the OpenAI API: what to assume when the engine is not known."""

from __future__ import annotations

from typing import ClassVar

from inference_engine_proxy_server.backends.base import BackendState, BaseBackend, contexts_told

__all__ = ["OpenAIBackend"]

# Answers to /health that tell of the path or the key, not of health.
_SAYS_NOTHING_OF_HEALTH = frozenset({401, 403, 404, 405, 501})


class OpenAIBackend(BaseBackend):
    """Health from ``/health``, or from ``/v1/models`` where that does not exist. It never tells its load.

    It has no ``providers``: it stands in for every engine that has no class of its own.
    """

    providers: ClassVar[tuple[str, ...]] = ()

    async def fetch_metrics(self) -> tuple[float, bool]:
        """No load can be told: returns ``(0.0, False)`` for a backend that is not ready.

        Raises:
            UnreadableState: it is ready, or its answer is not HTTP.
            OSError, TimeoutError: it did not answer.
        """
        return (await self.fetch_state()).load_and_ready()

    async def fetch_state(self) -> BackendState:
        """Whether it lives, and its models. Who lives is ready, as far as anyone can know.

        Raises:
            UnreadableState, OSError, TimeoutError: as :data:`Get`, for the path that its life is read from.
        """
        path, status = "/health", (await self.get("/health")).status
        if status in _SAYS_NOTHING_OF_HEALTH:
            path, status = "/v1/models", (await self.get("/v1/models")).status
            # It runs, it only wants a key that clients may have.
            status = 200 if status in (401, 403) else status
        if not 200 <= status < 300:
            hint = ", perhaps it is starting" if status == 503 else ""
            return BackendState(ready=False, live=False, reason=f"GET {path} answered {status}{hint}")
        models = await self.fetch_models()
        # Not of OpenAI's API, but vLLM, SGLang and others that came from them tell it so.
        contexts = contexts_told(models, lambda model: model.get("max_model_len"))
        return BackendState(ready=True, models=models, contexts=contexts)
