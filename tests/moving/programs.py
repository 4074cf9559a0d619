"""Other proxies in processes of their own, and requests as the pages show them."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from proxies.process import ProxyProcess, spawned
from proxies.proxy import Proxy, Site

__all__ = ["LITELLM", "NGINX", "SMG", "VLLM_ROUTER", "Peer", "ask", "content", "running"]

_START_SECONDS = 180.0  # LiteLLM's imports take long on a busy machine
_ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")


class Peer:
    """Another proxy.

    Args:
        program: name of its program.
        environment: its virtual environment, after a file in ``benchmarks/requirements``; ``None`` for the system's.
        settings: environment variables of its process.
    """

    def __init__(self, program: str, environment: str | None = None, settings: dict[str, str] | None = None) -> None:
        self.program, self.environment, self.settings = program, environment, settings or {}


NGINX = Peer("/usr/sbin/nginx")
VLLM_ROUTER = Peer("vllm-router", "vllm-router")
SMG = Peer("smg", "smg")
LITELLM = Peer(
    "litellm",
    "litellm",
    {
        "LITELLM_MODE": "PRODUCTION",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # otherwise it downloads a price list at start
    },
)


@contextlib.contextmanager
def running(peer: Peer, folder: Path, arguments: Sequence[str], port: int, probe: str = "/health") -> Iterator[str]:
    """Start it; yields its base URL once ``GET PROBE`` is answered with less than 500.

    Raises:
        RuntimeError: it is not installed, ended, or was not ready in time.
    """
    folder.mkdir(exist_ok=True)
    program = Proxy(peer.program, lambda _: list(arguments), peer.environment, settings=lambda _: peer.settings)
    with spawned(program, Site(folder, port, ())) as process:
        _wait(process, f"http://127.0.0.1:{port}{probe}")
        yield f"http://127.0.0.1:{port}"


def ask(command: str, url: str, *options: str) -> Any:
    """Run a page's ``curl`` against ``url`` instead of the address on the page; returns the JSON of the reply.

    Raises:
        AssertionError: it failed, or the command has no address to replace.
    """
    pointed, replaced = _ADDRESS.subn(url, command.strip())
    assert replaced == 1, command
    script = f"{pointed} {' '.join(options)} --silent --show-error --fail-with-body --max-time 120"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{script}: {done.stdout}{done.stderr}"
    return json.loads(done.stdout)


def content(reply: Any) -> str:
    """The text of the answer in a chat completion."""
    text: str = reply["choices"][0]["message"]["content"]
    assert text
    return text


def _wait(process: ProxyProcess, url: str) -> None:
    deadline = time.monotonic() + _START_SECONDS
    code = ""
    while not code or code == "000" or code >= "500":
        if process.has_ended or time.monotonic() > deadline:
            raise RuntimeError(f"it did not start: {code} {process.log_end}")
        time.sleep(0.1)
        probe = ["curl", "--silent", "--max-time", "5", "--output", "/dev/null", "--write-out", "%{http_code}", url]
        code = subprocess.run(probe, capture_output=True, text=True, check=False).stdout
