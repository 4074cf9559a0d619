"""Two real vLLM servers on the CPU, and the real proxy in front of them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from inference_engine_proxy_server.backends.base import BackendState, Reply, Thresholds
from inference_engine_proxy_server.backends.vllm import VLLMBackend
from support.ports import free_port

MODEL = "tiny"
MOST_RUNNING = 32  # requests of each server at a time
START_SECONDS = 600  # for two servers at once on two busy cores; one alone takes about 80


@dataclass
class Answer:
    """A whole HTTP reply."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def ask(url: str, payload: dict[str, Any] | None = None, timeout: float = 60) -> Answer:
    """Send GET to ``url``, or POST with ``payload``."""
    data = None if payload is None else json.dumps(payload).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json"})  # noqa: S310 - our own loopback
    try:
        with urllib.request.urlopen(request, timeout=timeout) as reply:  # noqa: S310
            return Answer(reply.status, {k.lower(): v for k, v in reply.headers.items()}, reply.read())
    except urllib.error.HTTPError as error:
        return Answer(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())


def eventually(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether ``condition`` becomes true in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if condition():
                return True
        except OSError:
            pass
        time.sleep(0.02)
    return False


class Vllm:
    """A vLLM server in its own process group."""

    def __init__(self, python: str, model: Path, log: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        arguments = (
            f"--model {model} --served-model-name {MODEL} --host 127.0.0.1 --port {port} --dtype float32 "
            f"--max-model-len 2048 --max-num-seqs {MOST_RUNNING} --max-num-batched-tokens 64 --block-size 32 "
            "--enforce-eager"
        )
        environment = {
            "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_ENABLE_RESPONSES_API_STORE": "1",
        }  # fmt: skip
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [python, "-m", "vllm.entrypoints.openai.api_server", *arguments.split()],
                env=os.environ | environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                # Not a session of its own: Linux schedules each session as one group (autogroup), and on two cores the
                # busy waiting of vLLM then stopped the proxy and the tests for seconds.
                process_group=0,
            )

    def is_up(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(f"vLLM ended while starting:\n{self.log.read_text()[-3000:]}")
        return ask(f"{self.url}/health").status == 200

    def running(self) -> float:
        """Numbers of running and waiting requests that it reports."""
        lines = ask(f"{self.url}/metrics").body.decode().splitlines()
        names = ("vllm:num_requests_running{", "vllm:num_requests_waiting{")
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(names))

    def state(self) -> BackendState:
        """The state that the proxy reads from it at its first poll."""
        return asyncio.run(self.backend().fetch_state())

    def backend(self) -> VLLMBackend:
        """The server as the proxy polls it."""

        async def get(path: str, json_body: bytes | None = None) -> Reply:
            answer = ask(
                self.url + path, timeout=2
            )  # as the proxy does, because /is_paused waits for an engine that hangs
            return Reply(answer.status, answer.body)

        return VLLMBackend(self.url, get, Thresholds(6, 3))

    @contextmanager
    def engine_stopped(self) -> Iterator[None]:
        """Stop the engine process; the HTTP server process continues."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        engine = next(int(pid) for pid in children if b"EngineCore" in Path(f"/proc/{pid}/cmdline").read_bytes())
        os.kill(engine, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(engine, signal.SIGCONT)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop all its processes."""
        os.killpg(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self.process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kill it and its children at once."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture(scope="session")
def engines(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Vllm]]:
    python = os.environ["VLLM_PYTHON"]
    folder = tmp_path_factory.mktemp("vllm")
    subprocess.run([python, Path(__file__).with_name("hf_model.py"), tiny_model, folder / "model"], check=True)
    servers = [Vllm(python, folder / "model", folder / f"vllm-{number}.log") for number in range(2)]
    try:
        assert all(eventually(server.is_up, START_SECONDS) for server in servers)
        yield servers
    finally:
        for server in servers:
            server.kill()


@contextmanager
def running_proxy(folder: Path, backends: list[str], **settings: str) -> Iterator[str]:
    """The base URL of the real proxy in front of ``backends``."""
    usual = {
        "PORT": "0", "METRICS_CACHE_TTL_SECONDS": "1", "BACKENDS": ",".join(backends), "ADMIN_KEY": "op",
        "QUEUE_TIMEOUT_SECONDS": "300",
    }  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-m", "inference_engine_proxy_server", "serve"],
        env=os.environ | usual | settings,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        try:
            listening = next(line for line in process.stderr if "listening on " in line)
            draining = threading.Thread(target=process.stderr.read)  # a full pipe would block the proxy
            draining.start()
            yield listening.split("listening on ")[1].strip()
        finally:
            process.terminate()
            draining.join()


@pytest.fixture(scope="session")
def proxy(engines: list[Vllm], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The base URL of the real proxy in front of both engines."""
    with running_proxy(tmp_path_factory.mktemp("proxy"), [engine.url for engine in engines]) as url:
        yield url
