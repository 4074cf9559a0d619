"""The supervisor in a separate process, with workers scripted by each test."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from inference_engine_proxy_server.config.configuration import Configuration
from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.config.sources import SettingsError
from inference_engine_proxy_server.server import make_supervisor

_PROGRAM = """
import os, select, signal, sys, time
from inference_engine_proxy_server.processes.channel import ALIVE, RELOADED, SERVING
from inference_engine_proxy_server.config.configuration import Configuration
from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.processes.ports import open_ports
from inference_engine_proxy_server.telemetry.logs import configure_logging
from inference_engine_proxy_server.processes.service_manager import ServiceManager
from inference_engine_proxy_server.processes.supervisor import Supervisor

configure_logging("info", "text")
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda *_: None)

def serves_until_stopped(context):
    context.channel.send(SERVING)
    select.select([context.channel], [], [])
    return 0

def serve(context):
    number = context.siblings.number
{serve}

def say_started():
    print("started", flush=True)
    return "status"

settings = Settings(workers=2, backends="http://a:1", host="127.0.0.1", port=0)
ports = open_ports(settings)
print(ports[0].address[1], flush=True)
manager = ServiceManager.of(os.environ, os.getpid())
sys.exit(Supervisor(Configuration.of(settings), ports, serve, lambda: None, say_started, manager=manager).run())
"""


class Running:
    """The running program, whose workers execute ``serve``."""

    def __init__(self, folder: Path, serve: str, **variables: str) -> None:
        self._log = folder / "log"
        program = _PROGRAM.format(serve=textwrap.indent(textwrap.dedent(serve), "    "))
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program], stdout=log, stderr=log, env={**os.environ, **variables}
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def wait_for(self, text: str, times: int = 1) -> None:
        deadline = time.monotonic() + 20
        while self.log.count(text) < times:
            assert time.monotonic() < deadline, self.log
            assert self.process.poll() is None, self.log
            time.sleep(0.005)

    def ended(self) -> int:
        try:
            return self.process.wait(20)
        finally:
            self.process.kill()
            self.process.wait()


def test_start_is_announced_once_and_sigterm_ends_with_exit_code_0(tmp_path: Path) -> None:
    running = Running(tmp_path, "return serves_until_stopped(context)")
    running.wait_for("started")
    running.process.send_signal(signal.SIGTERM)
    assert (running.ended(), running.log.count("started")) == (0, 1)


@pytest.mark.parametrize(
    ("end", "how"),
    [
        ("return 3", "exit code 3"),
        ("sys.exit(3)", "exit code 3"),
        ("raise RuntimeError('broken')", "exit code 1"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "signal SIGKILL"),
    ],
)
def test_a_worker_that_cannot_start_ends_all_processes(tmp_path: Path, end: str, how: str) -> None:
    running = Running(
        tmp_path,
        f"""
        if number == 0:
            return serves_until_stopped(context)
        {end}
        """,
    )
    assert running.ended() == 1
    assert f"worker 1 could not start: it ended with {how}" in running.log
    assert "started" not in running.log


def test_a_worker_that_keeps_dying_restarts_after_growing_pauses_and_gets_no_connections(tmp_path: Path) -> None:
    running = Running(
        tmp_path,
        """
        if number == 0:
            listeners = context.listeners[0]
            for listener in listeners:
                listener.setblocking(False)
            context.channel.send(SERVING)
            accepted = []
            while context.channel not in (ready := select.select([context.channel, *listeners], [], [])[0]):
                for listener in ready:
                    accepted.append(listener.accept())
            print("accepted", len(accepted), flush=True)
            return 0
        context.channel.send(SERVING)
        time.sleep(0.1)
        return 7
        """,
    )
    running.wait_for("worker 1 ended with exit code 7; its replacement starts in 1 s")
    port = int(running.log.splitlines()[0])
    _connect(port, times=20)
    running.wait_for("its replacement starts in 2 s")
    running.process.send_signal(signal.SIGTERM)
    assert running.ended() == 0
    assert "accepted 20" in running.log


def _connect(port: int, times: int) -> None:
    for _ in range(times):
        with socket.create_connection(("127.0.0.1", port)):
            pass


def test_several_workers_are_refused_on_other_systems_than_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SettingsError, match="WORKERS above 1 needs Linux"):
        make_supervisor(Configuration.of(Settings(workers=2, port=0, backends=("http://a:1",))), None, None)


def test_a_worker_that_fails_during_shutdown_makes_the_exit_code_1(tmp_path: Path) -> None:
    running = Running(tmp_path, "return serves_until_stopped(context) or number")
    running.wait_for("started")
    running.process.send_signal(signal.SIGINT)
    assert running.ended() == 1
    assert "worker 1 ended with exit code 1" in running.log


def test_a_worker_without_signs_of_life_is_replaced_and_the_service_lives_on(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        running = Running(
            tmp_path,
            """
            context.channel.send(SERVING)
            context.channel.send(ALIVE)
            if number == 1 and not os.path.exists("%s"):
                open("%s", "w").close()
                os.kill(os.getpid(), signal.SIGSTOP)
            while not select.select([context.channel], [], [], 0.02)[0]:
                context.channel.send(ALIVE)
            return 0
            """
            % ((tmp_path / "stopped",) * 2),
            NOTIFY_SOCKET=str(tmp_path / "notify"),
            WATCHDOG_USEC="1000000",
        )
        running.wait_for("worker 1 shows no sign of life")
        running.wait_for("worker 1 ended with signal SIGKILL; its replacement starts now")
        running.wait_for("worker 1 serves again")
        assert "worker 0" not in running.log
        running.process.send_signal(signal.SIGTERM)
        assert running.ended() == 0
        manager.setblocking(False)
        heard: list[str] = []
        while not heard or not heard[-1].startswith("STOPPING=1"):
            heard.append(manager.recv(4096).decode())
    assert "READY=1\nSTATUS=status" in heard
    assert heard.count("WATCHDOG=1") > 2


def test_a_reload_is_over_when_all_workers_have_reloaded(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        running = Running(
            tmp_path,
            """
            context.channel.send(SERVING)
            select.select([context.channel], [], [])
            context.channel.receive()
            print("reloaded", flush=True)
            context.channel.send(RELOADED)
            select.select([context.channel], [], [])
            return 0
            """,
            NOTIFY_SOCKET=str(tmp_path / "notify"),
        )
        assert manager.recv(4096) == b"READY=1\nSTATUS=status"
        running.process.send_signal(signal.SIGHUP)
        assert manager.recv(4096).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
        assert manager.recv(4096) == b"READY=1\nSTATUS=status"
        assert running.log.count("reloaded") == 2
        running.process.send_signal(signal.SIGTERM)
        assert running.ended() == 0
