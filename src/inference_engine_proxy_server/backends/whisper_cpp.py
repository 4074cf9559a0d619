"""whisper.cpp's ``whisper-server``, for speech recognition.

Sources: whisper.cpp ``examples/server/server.cpp``; measured on its source of August 2026.
"""

from __future__ import annotations

from typing import ClassVar

from inference_engine_proxy_server.backends.base import BackendState, BaseBackend, ModelNames, Probe

__all__ = ["WhisperCppBackend"]

_HEALTH_WITH_PREFIX = "/v1/audio/health"
"""The path of its health if it was started with ``--request-path /v1/audio``."""


class WhisperCppBackend(BaseBackend):
    """Health from ``/health``. It has one model, whose name it does not report, and ignores the names in requests.

    It answers one request at a time, and each waiting one occupies one of its few HTTP threads: with 20 requests
    waiting, ``/health`` took 42 s. So its capacity is 1, and requests wait in the proxy.
    """

    providers: ClassVar[tuple[str, ...]] = ("whispercpp", "whisper.cpp")
    # An idle kept-alive connection occupies an HTTP thread for 5 s: with 8 of them, the next answer took 4 s.
    reuses_connections: ClassVar[bool] = False

    @classmethod
    async def recognizes(cls, probe: Probe) -> bool:
        """By its name in the header of its reply to ``/v1/models``, which it does not have."""
        reply = await probe.get("/v1/models")
        return reply is not None and reply.field("server") == "whisper.cpp"

    async def fetch_state(self) -> BackendState:
        """Whether it is live.

        Starting while it loads another model (``POST /load``). It means to answer 503 then, but its error handler turns
        every error of ``/health`` into a 404. While it loads its first model, it does not listen.

        Raises:
            UnreadableState, OSError, TimeoutError: as :class:`Get`, for ``/health``.
        """
        health = await self.get("/health")
        if health.status == 404 and await self.fetch_body(_HEALTH_WITH_PREFIX) is None:
            return BackendState(ready=False, live=False, starting=True, reason="loading another model")
        if health.status not in (200, 404):
            return BackendState(ready=False, live=False, reason=f"GET /health answered {health.status}")
        return BackendState(ready=True, capacity=1, models=(), model_names=ModelNames.ANY)
