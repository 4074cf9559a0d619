"""The real ``mlx_lm.server`` on the CPU, and the proxy in front of it.

``MLX_LM_PYTHON`` names a Python that has mlx-lm. On Linux: ``pip install mlx-lm 'mlx[cpu]'``.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from inference_engine_proxy_server.backends.base import BackendState, Get, ModelNames, Probe, Reply, Thresholds
from inference_engine_proxy_server.backends.mlx_lm import MlxLmBackend
from inference_engine_proxy_server.backends.registry import discover_engines, identify
from support.live_proxy import Proxy, live_proxy
from support.ports import free_port
from support.waiting import eventually

pytestmark = pytest.mark.skipif("MLX_LM_PYTHON" not in os.environ, reason="MLX_LM_PYTHON names no Python with mlx-lm")

START_SECONDS = 120
CHAT = "/v1/chat/completions"
LONG = "once upon a time there was a server that answered every question that it was asked " * 4


class MlxLm:
    """A running ``mlx_lm.server``.

    Args:
        model: directory of the model.
        cache: of Hugging Face; need not exist.
    """

    def __init__(self, model: Path, cache: Path, log: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.model = str(model)
        arguments = ["--model", self.model, "--host", "127.0.0.1", "--port", str(port)]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [os.environ["MLX_LM_PYTHON"], "-m", "mlx_lm.server", *arguments],
                env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(cache), "OMP_NUM_THREADS": "1"},
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def get(self, client: httpx2.AsyncClient) -> Get:
        """Asks it as the proxy does."""

        async def get(path: str, json_body: bytes | None = None) -> Reply:
            del json_body
            try:
                reply = await client.get(self.url + path)
            except httpx2.HTTPError as error:
                raise ConnectionError(str(error)) from error
            fields = "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
            return Reply(reply.status_code, reply.content, fields.encode())

        return get

    async def is_up(self, get: Get) -> bool:
        assert self.process.poll() is None
        try:
            return (await get("/health")).status == 200
        except OSError:
            return False


@contextmanager
def mlx_lm(model: Path, cache: Path, log: Path) -> Iterator[MlxLm]:
    server = MlxLm(model, cache, log)
    try:
        yield server
    finally:
        server.process.kill()
        server.process.wait()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("mlx") / "tiny-mlx"
    subprocess.run([os.environ["MLX_LM_PYTHON"], Path(__file__).with_name("tiny_mlx_model.py"), directory], check=True)
    return directory


@pytest.fixture(scope="module")
def server(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlxLm]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "cache" / "hub").mkdir(parents=True)
    with mlx_lm(model, folder / "cache", folder / "log") as running:
        yield running


@pytest.fixture
async def get(server: MlxLm) -> AsyncIterator[Get]:
    async with httpx2.AsyncClient(timeout=20, trust_env=False) as client:
        ask = server.get(client)
        await eventually(lambda: server.is_up(ask), START_SECONDS)
        yield ask


@pytest.fixture
async def proxy(server: MlxLm, get: Get) -> AsyncIterator[Proxy]:
    del get  # waits until it is up
    async with live_proxy(server.url) as running:
        yield running


async def state(get: Get) -> BackendState:
    return await MlxLmBackend("http://b", get, Thresholds(6, 3)).fetch_state()


def body(server: MlxLm, **members: Any) -> dict[str, Any]:
    return {"model": server.model, "messages": [{"role": "user", "content": LONG}], "max_tokens": 12, **members}


async def test_it_is_recognized(get: Get) -> None:
    assert await identify(discover_engines(), Probe(get)) is MlxLmBackend


async def test_its_state_names_its_model(server: MlxLm, get: Get) -> None:
    found = await state(get)
    assert (found.ready, found.model_names) == (True, ModelNames.STRICT)
    assert [model["id"] for model in found.models or ()] == [server.model]


async def test_without_a_model_cache_it_lists_no_models(model: Path, tmp_path: Path) -> None:
    async with httpx2.AsyncClient(timeout=20, trust_env=False) as client:
        with mlx_lm(model, tmp_path / "missing", tmp_path / "log") as bare:
            ask = bare.get(client)
            await eventually(lambda: bare.is_up(ask), START_SECONDS)
            assert (await ask("/v1/models")).body == b""
            assert await identify(discover_engines(), Probe(ask)) is MlxLmBackend
            found = await state(ask)
    assert (found.ready, found.models, found.model_names) == (True, None, ModelNames.UNKNOWN)


async def test_replies_and_cached_tokens_come_through_the_proxy(server: MlxLm, proxy: Proxy) -> None:
    cached = 0
    for _ in range(2):
        reply = await proxy.http.post(CHAT, json=body(server))
        assert (reply.status_code, reply.json()["usage"]["completion_tokens"]) == (200, 12), reply.text
        cached += reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached > len(LONG) // 2

    async def all_are_counted() -> bool:
        return await proxy.metric("cached_tokens_total", model=server.model) == cached

    await eventually(all_are_counted)


async def test_a_stream_comes_through_the_proxy_to_its_end(server: MlxLm, proxy: Proxy) -> None:
    reply = await proxy.http.post(CHAT, json=body(server, stream=True))
    events = [line for line in reply.text.splitlines() if line.startswith("data: ")]
    assert events[-1] == "data: [DONE]"
    assert '"finish_reason": "length"' in events[-2]


async def test_usage_of_a_stream_is_reported_on_request_and_takes_nothing_from_other_events(
    server: MlxLm, proxy: Proxy
) -> None:
    """What ``streams_usage_on_request`` claims."""
    plain, asked = [
        [
            line
            for line in (await proxy.http.post(CHAT, json=body(server, stream=True, **more))).text.splitlines()
            if line
        ]
        for more in ({}, {"stream_options": {"include_usage": True}})
    ]
    counts = [sum(line.startswith("data: ") for line in lines) for lines in (plain, asked)]
    assert counts[1] == counts[0] + 1
    assert '"choices": [], "usage": {' in asked[-2]
    assert '"usage"' not in "".join(asked[:-2])


async def test_a_name_that_it_does_not_list_never_reaches_it(server: MlxLm, proxy: Proxy, get: Get) -> None:
    reply = await proxy.http.post(CHAT, json=body(server, model="nobody/has-this"))
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "model_not_found")
    assert (await state(get)).ready


async def test_a_path_that_it_lacks_is_its_own_404(proxy: Proxy) -> None:
    reply = await proxy.http.post("/v1/embeddings", json={"input": "a"})
    assert (reply.status_code, reply.content) == (404, b"Not Found")


async def test_concurrent_requests_are_batched(server: MlxLm, proxy: Proxy) -> None:
    replies = await asyncio.gather(*(proxy.http.post(CHAT, json=body(server)) for _ in range(6)))
    assert [reply.status_code for reply in replies] == [200] * 6
