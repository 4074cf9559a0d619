"""An external service is paid for: it gets clients' requests with the proxy's key, and nothing else."""

from __future__ import annotations

from pathlib import Path

from support.engine import Engine, answers_with, fails_with
from support.fakes.engine import http_reply
from support.http_client import chat, send
from support.program import program

PATH = "/v1/chat/completions"


def fleet(own: Engine, service: Engine) -> str:
    return (
        f"backends: [{{url: {own.url}, capacity: 1}},"
        f" {{url: {service.url}, tier: 2, models: [m], external: true, api_key: key-of-the-service}}]\n"
    )


async def test_an_external_service_gets_the_overflow_and_no_polls(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    async with Engine(answers_with(http_reply())) as own, Engine(answers_with(http_reply())) as service:
        file.write_text(fleet(own, service))
        settings = {"BACKENDS": "", "CONFIG_FILE": str(file), "METRICS_CACHE_TTL_SECONDS": "0.1"}
        async with program(tmp_path, **settings) as proxy:
            assert (await send(proxy.url, PATH, {**chat(), "model": "m"})).headers["x-backend"] == own.url
            await own.stop()
            reply = await send(proxy.url, PATH, {**chat(), "model": "m"}, headers={"Authorization": "Bearer client"})
            assert (reply.status, reply.headers["x-backend"]) == (200, service.url)
            assert await proxy.available() == {service.url}
    assert [(method, target) for method, target, _ in service.asked] == [("POST", PATH)]
    assert b"authorization: Bearer key-of-the-service\r\n" in service.requests[0]
    assert b"Bearer client" not in service.requests[0]


async def test_an_external_service_that_fails_is_suspended_like_any_backend(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    async with Engine(answers_with(http_reply())) as own, Engine(fails_with(500)) as service:
        file.write_text(fleet(own, service).replace("capacity: 1", "tier: 3"))
        async with program(tmp_path, BACKENDS="", CONFIG_FILE=str(file)) as proxy:
            for _ in range(8):
                await send(proxy.url, PATH, {**chat(), "model": "m"})
            assert (await proxy.details())[service.url]["state"] == "suspect"
    assert len(service.requests) == 5


async def test_an_external_service_that_cannot_be_reached_is_down_until_it_can(tmp_path: Path) -> None:
    file = tmp_path / "fleet.yaml"
    async with Engine(answers_with(http_reply())) as own, Engine(answers_with(http_reply())) as service:
        file.write_text(fleet(own, service))
        await service.stop()
        async with program(tmp_path, BACKENDS="", CONFIG_FILE=str(file)) as proxy:
            assert (await proxy.details())[service.url]["state"] == "down"
            await service.listen_again()
            await proxy.becomes(service, "up")
    assert not service.requests
