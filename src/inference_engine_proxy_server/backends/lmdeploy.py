"""LMDeploy's API server.

Sources: LMDeploy v0.16.0, ``lmdeploy/serve/openai/api_server.py``, beside it ``endpoints/management.py`` and
``endpoints/models.py``, ``lmdeploy/serve/core/health.py``, ``lmdeploy/serve/utils/server_utils.py``, and
``lmdeploy/metrics/loggers.py``.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from inference_engine_proxy_server.backends.base import BackendState, BaseBackend, ModelNames, decoded, non_negative
from inference_engine_proxy_server.backends.prometheus_text import sum_samples

__all__ = ["LMDeployBackend"]

_SHOWN = (
    "lmdeploy:num_requests_running",
    "lmdeploy:num_requests_waiting",
    "lmdeploy:gpu_cache_usage_perc",
    "lmdeploy:prompt_tokens_total",
    "lmdeploy:generation_tokens_total",
)


class LMDeployBackend(BaseBackend):
    """Health from ``/health``, models from ``/v1/models``. No load: ``/metrics`` is only shown.

    The gauges of ``/metrics`` are updated every 10 s. Taken as the load, they would show requests that have long been
    answered, and miss the ones that came since.

    Asleep, it answers ``/health`` with 200 and requests with 503, until an operator wakes it.
    """

    providers: ClassVar[tuple[str, ...]] = ("lmdeploy",)

    async def fetch_state(self) -> BackendState:
        """Whether it works, and its models.

        Not live while ``/health`` is not 200, or its ``status`` is ``sleeping``; starting while that is
        ``initializing``. ``figures``: its metrics, up to 10 s old.

        Raises:
            UnreadableState, OSError, TimeoutError: as :class:`Get`, for ``/health``.
        """
        health = await self.get("/health")
        report = decoded(health.body, _Health) or _Health()  # servers before 0.14 answer without a body
        if health.status != 200 or report.status == "sleeping":
            starting = report.status == "initializing"
            reason = report.message or f"GET /health answered {health.status}"
            return BackendState(
                ready=False, live=False, starting=starting, reason=f"{report.status or 'down'}: {reason}"
            )
        page = await self.fetch_body("/metrics") or b""
        figures = sum_samples(page, _SHOWN)
        return BackendState(
            ready=True,
            models=await self.fetch_models(),
            model_names=ModelNames.STRICT,
            streams_usage_on_request=True,
            figures={name: value for name, value in figures.items() if non_negative(value) is not None},
        )


class _Health(msgspec.Struct):
    status: str = ""
    message: str = ""
