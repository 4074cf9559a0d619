"""Real llama.cpp servers, each in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import httpx2

from support.ports import free_port
from support.tiny_gguf import write_tiny_gguf

__all__ = ["PROGRAM", "Router", "Server", "is_up"]

PROGRAM = os.environ.get("LLAMA_SERVER", "")
_LOADED = re.compile(r"spawning server instance with name=(\S+)")


class Server:
    """One ``llama-server``.

    Args:
        log: a new file for its output.
    """

    def __init__(self, log: Path, *options: str) -> None:
        self.url = f"http://127.0.0.1:{free_port()}"
        self._log = log.open("w+")
        command = [PROGRAM, "--host", "127.0.0.1", "--port", self.url.rpartition(":")[2], "--metrics", "--slots"]
        command += ["-np", "2", "-c", "8192", "-t", "1", *options]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log)

    @property
    def output(self) -> str:
        """What it has written so far."""
        self._log.seek(0)
        return self._log.read()

    def stop(self) -> None:
        """Stop it, and wait until it has ended."""
        self._process.terminate()
        self._process.wait(60)
        self._log.close()


class Router(Server):
    """A router with the models ``tiny-a`` and ``tiny-b``, and room for one.

    Args:
        folder: for its models and its output.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        (folder / "models").mkdir()
        for name in ("tiny-a", "tiny-b"):
            write_tiny_gguf(folder / "models" / f"{name}.gguf")
        super().__init__(folder / "log", "--models-dir", str(folder / "models"), "--models-max", "1", *options)

    @property
    def loads(self) -> list[str]:
        """The models that it loaded, in order."""
        return _LOADED.findall(self.output)


async def is_up(url: str) -> bool:
    """Whether the server at ``url`` answers requests."""
    async with httpx2.AsyncClient(base_url=url, trust_env=False) as http:
        try:
            return (await http.get("/health")).status_code == 200
        except httpx2.TransportError:
            return False
