"""``mlx_lm.server``, the server of mlx-lm.

Source: ``mlx_lm/server.py``; measured on mlx-lm 0.32.2 with the CPU build of MLX 0.32.4.
"""

from __future__ import annotations

import re
from typing import ClassVar

from inference_engine_proxy_server.backends.base import BackendState, BaseBackend, ModelNames, Probe

__all__ = ["MlxLmBackend"]

_SERVER = re.compile(r"BaseHTTP/[\d.]+ Python/[\d.]+\S*")


class MlxLmBackend(BaseBackend):
    """Health from ``/health``, models from ``/v1/models``. It reports no load, no slots and no context.

    It lists the models in the Hugging Face cache and the path that was given as ``--model``. It has one in memory, and
    loads whatever a request names: a name that it cannot find makes it unload its model all the same, and may start a
    download. It therefore gets only requests for names that it lists.

    Where the Hugging Face cache does not exist, ``/v1/models`` answers 200 with an empty body.

    Every reply ends with its connection (HTTP/1.0).
    """

    providers: ClassVar[tuple[str, ...]] = ("mlx_lm",)

    @classmethod
    async def recognizes(cls, probe: Probe) -> bool:
        """See :class:`BaseBackend`. Its models have no owner, and it is a server of Python's standard library."""
        listing = await probe.get("/v1/models")
        if listing is None or not _SERVER.fullmatch(listing.field("server")):
            return False
        if any(set(model) != {"id", "object", "created"} for model in await probe.models()):
            return False
        return await probe.json("/health") == {"status": "ok"}

    async def fetch_state(self) -> BackendState:
        """Whether it works, and its models. Not live once the thread that generates has died (``/health`` is 503).

        Raises:
            UnreadableState, OSError, TimeoutError: as :class:`Get`, for ``/health``.
        """
        health = await self.get("/health")
        if health.status != 200:
            return BackendState(ready=False, live=False, reason=f"GET /health answered {health.status}")
        models = await self.fetch_models()
        return BackendState(
            ready=True,
            models=models,
            model_names=ModelNames.UNKNOWN if models is None else ModelNames.STRICT,
            streams_usage_on_request=True,
        )
