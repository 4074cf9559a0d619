"""Sockets that systemd-socket-activate opens, and passes on as systemd does."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.engine import Engine, answers_with
from support.fakes.engine import http_reply
from support.http_client import send
from support.ports import free_port
from support.program import environment
from support.waiting import eventually
from systemd.service import Service
from systemd.test_upgrade import usual
from systemd.versions import Versions


def launcher(*listen: str, names: str = "") -> list[str]:
    """systemd-socket-activate, which starts the program when the first connection arrives."""
    kept = ["NOTIFY_SOCKET", "PATH", "PYTHONPATH", "BACKENDS", "PORT", "HOST", "WORKERS", "ADMIN_PORT", "ADMIN_KEY",
            "MAX_ALLOWED_REQUEST_QUEUE", "METRICS_CACHE_TTL_SECONDS"]  # fmt: skip
    return ["systemd-socket-activate", *[f"--listen={one}" for one in listen], *[f"--setenv={name}" for name in kept],
            *([f"--fdname={names}"] if names else [])]  # fmt: skip


async def started(stack: ExitStack, folder: Path, arguments: list[str], port: int, **variables: str) -> Service:
    service = Service(folder)
    service.versions.install("1.0.0")
    await asyncio.to_thread(service.start, arguments, variables)
    stack.callback(service.notify.close)
    stack.callback(service.kill)
    await eventually(lambda: "Listening on" in service.events)
    first = asyncio.create_task(send(f"http://127.0.0.1:{port}", "/livez"))  # noqa: TID251 - awaited below
    await service.serves()
    assert (await first).status == 200  # it waited for the program
    return service


@pytest.mark.parametrize("workers", [1, 4])
async def test_requests_on_all_sockets_are_answered_and_an_upgrade_keeps_them(tmp_path: Path, workers: int) -> None:
    ports = [free_port() for _ in range(3)]
    async with Engine(answers_with(http_reply())) as engine:
        settings = usual(engine, workers, ADMIN_PORT=str(free_port()), ADMIN_KEY="secret")
        listen = [f"127.0.0.1:{port}" for port in ports]
        with ExitStack() as stack:
            proxy = await started(
                stack, tmp_path / "s", launcher(*listen, names="clients:clients:admin"), ports[0], **settings
            )
            for version in ("1.0.0", "2.0.0"):
                for port in ports[:2]:
                    replies = [await send(f"http://127.0.0.1:{port}", "/v1/models") for _ in range(8)]
                    assert {reply.status for reply in replies} == {200}
                assert (await send(f"http://127.0.0.1:{ports[2]}", "/metrics")).status == 200
                assert (await send(f"http://127.0.0.1:{ports[0]}", "/metrics")).status == 404
                assert f"PORT: a service manager has opened 127.0.0.1, port {ports[0]}" in proxy.events
                assert f"ADMIN_PORT: a service manager has opened 127.0.0.1, port {ports[2]}" in proxy.events
                if version == "1.0.0":
                    proxy.versions.install("2.0.0")
                    await proxy.upgrade()


async def test_connections_are_shared_out_and_survive_the_death_of_a_worker(tmp_path: Path) -> None:
    port = free_port()
    async with Engine(answers_with(http_reply())) as engine:
        with ExitStack() as stack:
            proxy = await started(
                stack, tmp_path / "s", launcher(f"127.0.0.1:{port}"), port, **usual(engine, 4, ADMIN_KEY="secret")
            )
            url = f"http://127.0.0.1:{port}"
            replies = await asyncio.gather(*(send(url, "/v1/chat/completions", {"model": "m"}) for _ in range(200)))
            workers = {reply.headers["x-request-id"].partition("-")[0] for reply in replies}
            assert {reply.status for reply in replies} == {200}
            assert len(workers) > 1

            children = Path(f"/proc/{proxy.main_pid}/task/{proxy.main_pid}/children").read_text().split()  # noqa: ASYNC240
            asking = [asyncio.create_task(ask_often(url)) for _ in range(4)]  # noqa: TID251 - awaited below
            for child in children[:3]:
                os.kill(int(child), signal.SIGSTOP)  # it takes no more connections; others do
            await asyncio.sleep(1)
            for child in children[:3]:
                os.kill(int(child), signal.SIGKILL)
            await eventually(lambda: proxy.events.count("serves again") == 3)
            counts = await asyncio.gather(*asking)
            assert all(counts)


async def ask_often(url: str) -> int:
    """The number of answers within three seconds; a connection that a frozen worker had accepted may break."""
    answered = 0
    deadline = asyncio.get_running_loop().time() + 3
    while asyncio.get_running_loop().time() < deadline:
        try:
            answered += (await send(url, "/livez")).status == 200
        except (ConnectionResetError, BrokenPipeError, asyncio.IncompleteReadError):
            continue
    return answered


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--listen=127.0.0.1:{port}", "--datagram"], "is not a TCP socket: use ListenStream="),
        (["--listen={folder}/socket"], "is not a TCP socket: ListenStream= must be a port"),
        (["--listen=127.0.0.1:{port}", "--accept"], "does not listen: use Accept=no"),
        (["--listen=127.0.0.1:{port}", "--fdname=admin"], "there is only a socket for ADMIN_PORT"),
    ],
    ids=["datagram", "unix", "accepted", "admin only"],
)
async def test_sockets_that_cannot_be_used_end_the_program_with_one_line(
    tmp_path: Path, arguments: list[str], problem: str
) -> None:
    port = free_port()
    versions = Versions(tmp_path / "versions")
    versions.install("1.0.0")
    given = [one.format(port=port, folder=tmp_path) for one in arguments]
    command = ["systemd-socket-activate", *given, "--setenv=PATH", "--setenv=BACKENDS=http://127.0.0.1:9"]
    log = tmp_path / "log"
    process = await asyncio.to_thread(start, [*command, str(versions.program), "serve"], tmp_path, log)
    try:
        await eventually(lambda: "Listening on" in log.read_text())
        kind = socket.SOCK_DGRAM if "--datagram" in given else socket.SOCK_STREAM
        is_unix = any("/socket" in one for one in given)
        with socket.socket(socket.AF_UNIX if is_unix else socket.AF_INET, kind) as client:
            client.connect(str(tmp_path / "socket") if is_unix else ("127.0.0.1", port))
            client.send(b"x")
            await eventually(lambda: re.search(r"error +socket activation: .*", log.read_text()))
        assert problem in log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        process.kill()
        process.wait()


def start(command: list[str], folder: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as stderr:
        return subprocess.Popen(command, cwd=folder, env=environment(), stderr=stderr)
