"""A running proxy as clients and operators see it, in any process."""

from __future__ import annotations

from typing import Any, Protocol

from prometheus_client.parser import text_string_to_metric_families

from support.http_client import Call, Reply, chat, send
from support.waiting import eventually

__all__ = ["Addressed", "RunningProxy"]


class Addressed(Protocol):
    """Anything with a URL, such as an engine."""

    @property
    def url(self) -> str: ...


class RunningProxy:
    """A running proxy as clients and operators see it.

    Attributes:
        url: its base URL.
    """

    url: str

    async def health(self) -> dict[str, Any]:
        """The content of ``GET /health``."""
        reply = await send(self.url, "/health")
        assert reply.status == 200
        health: dict[str, Any] = reply.json
        return health

    async def details(self) -> dict[str, dict[str, Any]]:
        """The details of each backend in ``/health``, by base URL."""
        return {detail["backend"]: detail for detail in (await self.health())["details"]}

    async def post(self, path: str = "/v1/chat/completions", body: object = None, **headers: str) -> Reply:
        """Send a POST and return the reply, as far as it is received."""
        return await send(self.url, path, chat() if body is None else body, headers=headers)

    def call(self, path: str = "/v1/chat/completions", *, stream: bool = True) -> Call:
        """A request whose reply is read step by step."""
        return Call(self.url, path, chat(stream=stream))

    async def backend(self, engine: Addressed) -> dict[str, Any]:
        """The state of ``engine`` in ``/health``."""
        return (await self.details())[engine.url]

    async def state(self, engine: Addressed) -> str:
        return str((await self.backend(engine))["state"])

    async def becomes(self, engine: Addressed, state: str, seconds: float = 20.0) -> None:
        """Wait until ``engine`` has ``state``."""

        async def is_there() -> bool:
            return await self.state(engine) == state

        await eventually(is_there, seconds)

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of all samples of ``inference_proxy_NAME`` with ``labels``."""
        page = (await send(self.url, "/metrics")).body.decode()
        return sum(
            sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name == f"inference_proxy_{name}" and labels.items() <= sample.labels.items()
        )

    async def retries(self, reason: str) -> float:
        return await self.metric("retries_total", reason=reason)

    async def is_at_rest(self) -> bool:
        """Whether no request is in flight except this one."""
        names = ("requests_in_flight", "queue_requests", "request_body_bytes_in_flight")
        return not [name for name in names if await self.metric(name)] and (
            await self.metric("client_requests_in_flight") <= 1
        )
