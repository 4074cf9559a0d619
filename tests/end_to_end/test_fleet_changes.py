"""Backends join, leave and are drained while requests run, on real servers."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from end_to_end.conftest import StartProxy
from support.http_client import Call, Reply, chat, send
from support.llama_server import LlamaServer
from support.program import Proxy
from support.waiting import eventually

PATH = "/v1/chat/completions"
DONE = b"data: [DONE]\n\n"
ADMIN = {"Authorization": "Bearer admin-secret"}


def fleet_of(*servers: LlamaServer) -> str:
    return "backends:\n" + "".join(f"  - url: {server.url}\n" for server in servers)


def start_with(start_proxy: StartProxy, file: Path, server: LlamaServer) -> Proxy:
    """A proxy whose fleet file has ``server``."""
    file.write_text(fleet_of(server))
    return start_proxy(BACKENDS="", CONFIG_FILE=str(file))


@asynccontextmanager
async def begun_stream(proxy: Proxy) -> AsyncIterator[Call]:
    async with Call(proxy.url, PATH, chat(300, stream=True)) as stream:
        stream.send()
        assert await stream.head() == 200
        yield stream


async def rest_of(stream: Call) -> list[bytes]:
    events = []
    while event := await stream.event():
        events.append(event)
    return events


async def test_changed_fleet_file_is_applied_and_streams_continue(
    start_proxy: StartProxy, two_slow_servers: list[LlamaServer], tmp_path: Path
) -> None:
    old, new = two_slow_servers
    file = tmp_path / "fleet.yaml"
    proxy = start_with(start_proxy, file, old)
    async with begun_stream(proxy) as stream:
        file.write_text(fleet_of(new))
        await eventually(lambda: is_fleet(proxy, new))

        assert (await send(proxy.url, PATH, chat())).headers["x-backend"] == new.url
        events = await rest_of(stream)
        assert events[-1] == DONE
        assert stream.headers["x-backend"] == old.url
    await eventually(lambda: proxy.connections_to(old.port) == 0)


async def test_stream_of_a_removed_backend_that_ends_continues_on_another_one(
    start_proxy: StartProxy, two_slow_servers: list[LlamaServer], tmp_path: Path
) -> None:
    old, new = two_slow_servers
    file = tmp_path / "fleet.yaml"
    proxy = start_with(start_proxy, file, old)
    async with begun_stream(proxy) as stream:
        for _ in range(5):
            await stream.event()
        old.freeze()  # so that the answer is not complete before
        file.write_text(fleet_of(new))
        await eventually(lambda: is_fleet(proxy, new))
        old.kill()
        events = await rest_of(stream)
    assert events[-1] == DONE
    assert [event for event in events if event.startswith(b":")] == [
        b": resumed on another backend after backend_disconnected\n\n"
    ]


async def is_fleet(proxy: Proxy, *servers: LlamaServer) -> bool:
    return await proxy.available() == {server.url for server in servers} == set(await proxy.details())


async def test_invalid_fleet_file_changes_nothing(
    start_proxy: StartProxy, two_servers: list[LlamaServer], tmp_path: Path
) -> None:
    server, other = two_servers
    file = tmp_path / "fleet.yaml"
    file.write_text(fleet_of(server))
    proxy = start_proxy(BACKENDS="", CONFIG_FILE=str(file))

    file.write_text(fleet_of(other) + "    enginee: vllm\n")
    await eventually(lambda: "did you mean engine?" in proxy.events)

    assert await is_fleet(proxy, server)
    file.write_text(fleet_of(other) + "    engine: lamacpp\n")
    await eventually(lambda: "engine is 'lamacpp'" in proxy.events)
    assert await is_fleet(proxy, server)
    metrics = (await send(proxy.url, "/metrics")).body.decode()
    assert 'inference_proxy_config_reloads_total{result="failure"} 2.0' in metrics


async def test_changed_policy_of_a_model_applies_at_once(
    start_proxy: StartProxy, two_servers: list[LlamaServer], tmp_path: Path
) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(fleet_of(*two_servers) + "models: {sticky: {balancing_policy: rendezvous}}\n")
    proxy = start_proxy(BACKENDS="", CONFIG_FILE=str(file), BALANCING_POLICY="round_robin")

    assert len(set(await backends_of(proxy, "sticky"))) == 1
    assert alternates(await backends_of(proxy, "other"))

    file.write_text(fleet_of(*two_servers) + "models: {other: {balancing_policy: rendezvous}}\n")
    await eventually(lambda: "model settings in the fleet file now apply to: other" in proxy.events)

    assert alternates(await backends_of(proxy, "sticky"))
    assert len(set(await backends_of(proxy, "other"))) == 1


async def backends_of(proxy: Proxy, model: str) -> list[str]:
    """The backends of six identical sequential requests for ``model``."""
    replies = [await send(proxy.url, PATH, {**chat(), "model": model}) for _ in range(6)]
    return [reply.headers["x-backend"] for reply in replies]


def alternates(backends: list[str]) -> bool:
    return len(set(backends)) == 2 and backends == backends[:2] * 3


async def test_a_changed_tier_applies_at_once(
    start_proxy: StartProxy, two_servers: list[LlamaServer], tmp_path: Path
) -> None:
    file = tmp_path / "fleet.yaml"
    first, second = two_servers
    tiers = "backends: [{{url: {0.url}, tier: {1}}}, {{url: {2.url}, tier: {3}}}]\n"
    file.write_text(tiers.format(first, 1, second, 2))
    proxy = start_proxy(BACKENDS="", CONFIG_FILE=str(file))
    assert await backends_of(proxy, "any") == [first.url] * 6

    file.write_text(tiers.format(first, 3, second, 2))
    await eventually(lambda: proxy.events.count("the fleet is now") == 1)
    assert await backends_of(proxy, "any") == [second.url] * 6


async def test_a_spare_backend_serves_while_the_first_tier_is_down(
    start_proxy: StartProxy, two_servers: list[LlamaServer], tmp_path: Path
) -> None:
    file = tmp_path / "fleet.yaml"
    big, spare = two_servers
    file.write_text(
        f"backends: [{{url: {big.url}, models: [big]}},"
        f" {{url: {spare.url}, models: [small], tier: 2, takes_any_model: true}}]\n"
    )
    proxy = start_proxy(BACKENDS="", CONFIG_FILE=str(file))
    assert await backends_of(proxy, "big") == [big.url] * 6
    big.kill()
    assert await backends_of(proxy, "big") == [spare.url] * 6
    assert await backends_of(proxy, "small") == [spare.url] * 6


async def test_sighup_reloads_the_settings_at_once(start_proxy: StartProxy, shared_server: LlamaServer) -> None:
    proxy = start_proxy(shared_server)

    proxy.signal(signal.SIGHUP)

    await eventually(lambda: "reloaded, the fleet is unchanged" in proxy.events)
    assert (await send(proxy.url, PATH, chat())).status == 200


async def test_changed_settings_that_need_a_restart_are_named(
    start_proxy: StartProxy, shared_server: LlamaServer, tmp_path: Path
) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(fleet_of(shared_server))
    proxy = start_proxy(BACKENDS="", CONFIG_FILE=str(file))

    file.write_text(fleet_of(shared_server) + "settings:\n  QUEUE_TIMEOUT_SECONDS: 5\n")

    await eventually(lambda: "QUEUE_TIMEOUT_SECONDS has changed; restart to apply the change" in proxy.events)


async def test_draining_backend_finishes_its_requests_and_reports_when_it_is_safe_to_stop(
    start_proxy: StartProxy, two_slow_servers: list[LlamaServer]
) -> None:
    proxy = start_proxy(*two_slow_servers, ADMIN_KEY="admin-secret")
    async with Call(proxy.url, PATH, chat(200, stream=True)) as stream:
        stream.send()
        assert await stream.head() == 200
        url = stream.headers["x-backend"]
        name = url.removeprefix("http://")

        begun = (await operate(proxy, f"/admin/backends/{name}/drain")).json
        assert (begun["draining"], begun["safe_to_stop"], begun["requests_in_flight"]) == (True, False, 1)
        others = {(await send(proxy.url, PATH, chat())).headers["x-backend"] for _ in range(6)}
        assert others == {server.url for server in two_slow_servers} - {url}

        waiting = asyncio.get_running_loop().create_task(
            operate(proxy, f"/admin/backends/{name}/drain?wait_seconds=60")
        )
        assert (await rest_of(stream))[-1] == DONE
        assert (await waiting).json["safe_to_stop"]

    back = (await operate(proxy, f"/admin/backends/{name}/undrain")).json
    assert (back["draining"], back["takes_requests"]) == (False, True)
    again = {(await send(proxy.url, PATH, chat())).headers["x-backend"] for _ in range(30)}
    assert again == {server.url for server in two_slow_servers}


async def operate(proxy: Proxy, target: str) -> Reply:
    reply = await send(proxy.url, target, method="POST", headers=ADMIN)
    assert reply.status == 200
    return reply


async def test_draining_needs_the_admin_key(start_proxy: StartProxy, shared_server: LlamaServer) -> None:
    proxy = start_proxy(shared_server, ADMIN_KEY="admin-secret")
    name = shared_server.url.removeprefix("http://")

    assert (await send(proxy.url, f"/admin/backends/{name}/drain", method="POST")).status == 401
    unknown = await send(proxy.url, "/admin/backends/unknown/drain", method="POST", headers=ADMIN)

    assert (unknown.status, unknown.json["error"]["code"]) == (404, "no_such_backend")
    assert await proxy.available() == {shared_server.url}
