"""The unit files under a real systemd, which is the first process of its own namespaces."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from support.engine import Engine
from support.http_client import Call, chat, send
from support.ports import free_port
from support.waiting import eventually
from systemd.load import answers_slowly, under_load
from systemd.machine import LIBRARIES, Machine, machine

SERVICE, SOCKET = "inference-proxy.service", "inference-proxy.socket"


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Machine]:
    with machine(tmp_path / "machine") as one:
        yield one


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    async with Engine(answers_slowly()) as one:
        yield one


def configure(host: Machine, engine: Engine, port: int, workers: int = 1, *, unit: str = "", **settings: str) -> None:
    """An installed proxy, with its settings in /etc."""
    out = host.settings.parent / "out"
    host.versions.install("1.0.0")
    values = {"BACKENDS": engine.url, "PORT": str(port), "WORKERS": str(workers), "MAX_ALLOWED_REQUEST_QUEUE": "100",
              "METRICS_CACHE_TTL_SECONDS": "1", **settings}  # fmt: skip
    (host.settings / ".env").write_text("".join(f"{name}={value}\n" for name, value in values.items()))
    output = f"StandardOutput=append:{out}/access\nStandardError=append:{out}/log\n"
    host.change_unit(SERVICE, f"[Service]\n{output}Environment={LIBRARIES}\n{unit}")
    host.change_unit(SOCKET, f"[Socket]\nListenStream=\nListenStream=127.0.0.1:{port}\n")
    host.start()


async def systemctl(host: Machine, *arguments: str) -> str:
    return await asyncio.to_thread(host.systemctl, *arguments)


async def main_pid(host: Machine) -> int:
    return int(await asyncio.to_thread(host.show, SERVICE, "MainPID"))


async def status(host: Machine) -> str:
    return await asyncio.to_thread(host.show, SERVICE, "StatusText")


@pytest.mark.parametrize("workers", [1, 4])
async def test_the_service_starts_reloads_and_stops(host: Machine, engine: Engine, workers: int) -> None:
    port = free_port()
    await asyncio.to_thread(configure, host, engine, port, workers)

    await systemctl(host, "start", SERVICE)  # returns when the service is ready
    assert (await send(f"http://127.0.0.1:{port}", "/health")).json["status"] == "ok"
    assert f"listening on http://127.0.0.1:{port}" in await status(host)
    assert "version 1.0.0" in await status(host)

    pid = await main_pid(host)
    await systemctl(host, "reload", SERVICE)
    await eventually(lambda: host.log.count("reloaded, the fleet is unchanged") == workers)
    assert (await systemctl(host, "is-active", SERVICE), await main_pid(host)) == ("active", pid)

    async with Call(f"http://127.0.0.1:{port}", "/v1/chat/completions", chat(stream=True)) as call:
        call.send()
        assert await call.head() == 200
        await systemctl(host, "stop", SERVICE)  # returns when the stream has ended
        assert (await call.reply()).complete
    assert await asyncio.to_thread(host.show, SERVICE, "Result") == "success"
    assert await asyncio.to_thread(host.show, SERVICE, "NRestarts") == "0"


async def test_the_service_keeps_its_files_in_its_state_directory_and_cannot_write_elsewhere(
    host: Machine, engine: Engine
) -> None:
    port = free_port()
    await asyncio.to_thread(configure, host, engine, port, ADMIN_KEY="secret")
    await systemctl(host, "start", SERVICE)
    headers = {"Authorization": "Bearer secret"}
    url = f"http://127.0.0.1:{port}"
    async with Engine(answers_slowly()) as other:
        added = await send(url, "/admin/backends", {"url": other.url}, method="POST", headers=headers)
        assert added.status in (200, 201)
        await systemctl(host, "restart", SERVICE)
        listed = (await send(url, "/admin/backends", headers=headers)).json["backends"]
    assert {one["url"] for one in listed} == {engine.url, other.url}
    process = Path(f"/proc/{host.pid_outside(await main_pid(host))}")
    state = [
        line.split()[1]
        for line in (process / "status").read_text().splitlines()
        if line.startswith(("Uid", "NoNew", "Seccomp:", "CapBnd"))
    ]
    assert int(state[0]) >= 61184  # a dynamic user
    assert state[1:] == ["0000000000000000", "1", "2"]
    assert sorted(one.name for one in (process / "root/var/lib/private/inference-proxy").iterdir()) >= ["backends.yaml"]


async def test_settings_that_cannot_be_used_are_not_tried_again(host: Machine, engine: Engine) -> None:
    await asyncio.to_thread(configure, host, engine, free_port(), BACKENDS="nonsense")
    await asyncio.to_thread(host.systemctl, "start", SERVICE, check=False)
    await eventually(lambda: host.show(SERVICE, "ActiveState") == "failed")
    assert await asyncio.to_thread(host.show, SERVICE, "ExecMainStatus") == "2"
    assert await asyncio.to_thread(host.show, SERVICE, "NRestarts") == "0"
    assert "BACKENDS" in host.log


@pytest.mark.parametrize("workers", [1, 4])
async def test_a_restart_with_socket_activation_refuses_no_connection(
    host: Machine, engine: Engine, workers: int
) -> None:
    port = free_port()
    await asyncio.to_thread(configure, host, engine, port, workers)
    await systemctl(host, "start", SOCKET)
    async with under_load(port) as outcomes:  # the first connection starts the service
        await eventually(lambda: sum(outcomes.complete.values()) > 20)
        pids = [await main_pid(host)]
        for _ in range(3):
            await systemctl(host, "restart", SERVICE)
            await asyncio.sleep(2)
            pids.append(await main_pid(host))
    assert (outcomes.refused, outcomes.broken) == (0, [])
    assert len(set(pids)) == 4
    assert outcomes.complete["fresh"] > 100
    assert "a service manager has opened 127.0.0.1" in host.log


async def test_a_socket_on_all_addresses_without_keys_is_warned_of(host: Machine, engine: Engine) -> None:
    port = free_port()
    await asyncio.to_thread(configure, host, engine, port)
    host.change_unit(SOCKET, f"[Socket]\nListenStream=\nListenStream={port}\n")
    await systemctl(host, "daemon-reload")
    await systemctl(host, "start", SOCKET, SERVICE)
    for address in ("127.0.0.1", "[::1]"):
        assert (await send(f"http://{address}:{port}", "/livez")).status == 200
    assert f"listening on http://[::]:{port}" in await status(host)
    assert "anyone who can reach HOST :: can use the engines" in host.log


@pytest.mark.parametrize("is_activated", [False, True], ids=["own sockets", "socket activation"])
@pytest.mark.parametrize("workers", [1, 4])
async def test_an_upgrade_fails_no_request_and_systemd_follows_it(
    host: Machine, engine: Engine, workers: int, is_activated: bool
) -> None:
    port = free_port()
    await asyncio.to_thread(configure, host, engine, port, workers)
    await systemctl(host, "start", *([SOCKET] if is_activated else []), SERVICE)
    pids = [await main_pid(host)]
    async with under_load(port) as outcomes:
        for number in range(5):
            await upgrade(host, f"2.0.{number}")
            pids.append(await main_pid(host))
            await asyncio.sleep(1)
        host.versions.install("broken", before="sys.exit(1)")
        await systemctl(host, "kill", "--kill-whom=main", "--signal=USR2", SERVICE)
        await eventually(lambda: "the new program ended before it served" in host.log, 60)
        await eventually(lambda: "the last upgrade failed" in host.show(SERVICE, "StatusText"))
        assert await main_pid(host) == pids[-1]
        assert await systemctl(host, "is-active", SERVICE) == "active"

    assert outcomes.failed == []
    assert len(set(pids)) == 6


async def upgrade(host: Machine, version: str) -> None:
    host.versions.install(version)
    await systemctl(host, "kill", "--kill-whom=main", "--signal=USR2", SERVICE)
    await eventually(lambda: f"version {version}" in host.show(SERVICE, "StatusText"), 60)
    assert host.show(SERVICE, "NRestarts") == "0"  # it is no new start after the end of the old program


async def test_systemd_sees_the_end_of_a_program_that_took_over(host: Machine, engine: Engine) -> None:
    port = free_port()
    await asyncio.to_thread(configure, host, engine, port)
    await systemctl(host, "start", SERVICE)
    async with Call(f"http://127.0.0.1:{port}", "/v1/chat/completions", chat(stream=True)) as call:
        call.send()
        assert await call.head() == 200
        await upgrade(host, "2.0.0")
        os.kill(host.pid_outside(await main_pid(host)), signal.SIGKILL)  # while the old one still has the stream
        assert (await call.reply()).complete
    await eventually(lambda: host.show(SERVICE, "NRestarts") == "1", 60)
    await eventually(lambda: host.show(SERVICE, "ActiveState") == "active", 60)
    assert (await send(f"http://127.0.0.1:{port}", "/livez")).status == 200


async def test_a_frozen_process_is_ended_by_the_watchdog_and_started_again(host: Machine, engine: Engine) -> None:
    port = free_port()
    await asyncio.to_thread(configure, host, engine, port, unit="WatchdogSec=4\nTimeoutAbortSec=2\n")
    await systemctl(host, "start", SOCKET, SERVICE)
    pid = await main_pid(host)
    await asyncio.sleep(6)
    assert await main_pid(host) == pid  # signs of life arrive

    os.kill(host.pid_outside(pid), signal.SIGSTOP)
    assert (await send(f"http://127.0.0.1:{port}", "/livez")).status == 200  # it waits for the next process

    assert await main_pid(host) != pid
    assert await asyncio.to_thread(host.show, SERVICE, "NRestarts") == "1"


async def test_a_process_whose_event_loop_hangs_logs_where(host: Machine, engine: Engine) -> None:
    port = free_port()
    await asyncio.to_thread(configure, host, engine, port, unit="WatchdogSec=3\n")
    host.versions.install(
        "2.0.0",
        before="""
import asyncio, time
from inference_engine_proxy_server.processes import sole_host
def hang(self):
    def stand_still():
        time.sleep(1000)
    asyncio.get_running_loop().call_later(2, stand_still)
sole_host.SoleHost._begin_upgrade = hang
""",
    )
    await systemctl(host, "start", SERVICE)
    await systemctl(host, "kill", "--kill-whom=main", "--signal=USR2", SERVICE)
    await eventually(lambda: host.show(SERVICE, "NRestarts") == "1", 60)
    assert "Fatal Python error: Aborted" in host.log
    assert "in stand_still" in host.log


async def test_a_frozen_worker_is_replaced_by_the_supervisor(host: Machine, engine: Engine) -> None:
    port = free_port()
    await asyncio.to_thread(configure, host, engine, port, 2, unit="WatchdogSec=4\n")
    await systemctl(host, "start", SERVICE)
    pid = await main_pid(host)
    workers = host.children(pid)

    os.kill(min(workers), signal.SIGSTOP)

    await eventually(lambda: "shows no sign of life" in host.log)
    await eventually(lambda: "serves again" in host.log)
    assert host.children(pid) & workers == workers - {min(workers)}
    assert await main_pid(host) == pid
    assert await asyncio.to_thread(host.show, SERVICE, "NRestarts") == "0"
