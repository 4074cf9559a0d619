"""A real redis-server, or valkey-server, on a free port of 127.0.0.1, which tests kill, stop and start again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from support.ports import free_port

__all__ = ["RedisServer", "redis_program"]

_START_SECONDS = 30.0


def redis_program() -> str | None:
    """The server's program; ``None`` if there is none. REDIS_SERVER names another one."""
    named = os.environ.get("REDIS_SERVER")
    return named or shutil.which("redis-server") or shutil.which("valkey-server")


class RedisServer:
    """The server, which accepts connections when the constructor returns; killed at the end.

    Args:
        folder: of its file with data.
        options: further options, such as ``--requirepass``.
        keeps_data: whether it has its data again after a kill.
    """

    def __init__(self, folder: Path, *options: str, keeps_data: bool = False) -> None:
        folder.mkdir(exist_ok=True)
        self.port = free_port()
        self._folder = folder
        append = ["--appendonly", "yes", "--appendfsync", "always"] if keeps_data else ["--appendonly", "no"]
        self._options = [*append, "--save", "", *options]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()

    @property
    def url(self) -> str:
        """As in STATE_URL."""
        return f"redis://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it again."""
        program = redis_program()
        assert program is not None
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                [program, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder), *self._options],
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._accepts():
            assert self._process.poll() is None, (self._folder / "redis.log").read_text()
            assert time.monotonic() < deadline, "redis-server does not listen"
            time.sleep(0.02)

    def kill(self) -> None:
        """End it at once, as a crash does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Let it answer nothing; its connections stay open."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _accepts(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0
