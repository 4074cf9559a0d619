"""A backend that makes no progress is frozen only if it does not answer a probe either."""

from __future__ import annotations

import asyncio
import time

from support.fakes.engine import EngineConnection, FakeEngine, http_reply
from support.http_client import chat
from support.live_proxy import live_proxy

CHAT = "/v1/chat/completions"
MODELS = b'{"object":"list","data":[{"id":"m","object":"model","owned_by":"somebody"}]}'
PROMPT_SECONDS = 3.5  # longer than it takes to find a frozen backend


class Engine(FakeEngine):
    """Needs PROMPT_SECONDS for each request.

    Attributes:
        is_frozen: it answers nothing any more.
        probes: how often it was asked for its health while it had a request.
    """

    def __init__(self) -> None:
        super().__init__(self._serve)
        self.is_frozen = False
        self.is_busy = False
        self.probes = 0

    async def _serve(self, connection: EngineConnection) -> None:
        while True:
            request = await connection.request()
            self.probes += self.is_busy and request.startswith(b"GET /health ")
            if self.is_frozen:
                return
            if request.startswith(b"POST"):
                self.is_busy = True
                await asyncio.sleep(PROMPT_SECONDS)
                connection.send(http_reply())
            else:
                connection.send(http_reply(MODELS, 200 if b" /v1/models " in request else 404))


async def test_a_backend_that_reads_a_long_prompt_is_probed_and_keeps_its_request() -> None:
    async with Engine() as engine, Engine() as other, live_proxy(engine.url, other.url) as proxy:
        reply = await proxy.post(CHAT, chat())

        assert reply.status == 200
        assert sorted(one.probes > 0 for one in (engine, other)) == [False, True]
        assert [detail["state"] for detail in (await proxy.details()).values()] == ["up", "up"]
        assert await proxy.retries("request_moved") == 0


async def test_a_frozen_backend_loses_its_requests_within_three_seconds() -> None:
    async with Engine() as frozen, Engine() as other, live_proxy(frozen.url, other.url) as proxy:
        frozen.is_frozen = True
        asked_at = time.monotonic()
        replies = await asyncio.gather(*(proxy.post(CHAT, chat()) for _ in range(6)))

        assert {(reply.status, reply.headers["x-backend"]) for reply in replies} == {(200, other.url)}
        assert time.monotonic() - asked_at < 3 + PROMPT_SECONDS
        assert await proxy.state(frozen) == "down"
        assert "answers no probe" in (await proxy.backend(frozen))["reason"]
