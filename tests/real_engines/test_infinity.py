"""Two real Infinity servers with the same two tiny models, and the proxy in front of them.

``INFINITY_PYTHON`` names a Python that has ``infinity-emb[server,torch]``.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from inference_engine_proxy_server.backends.base import Probe
from inference_engine_proxy_server.backends.base import Reply as PollReply
from inference_engine_proxy_server.backends.infinity import InfinityBackend
from inference_engine_proxy_server.backends.registry import discover_engines, identify
from real_engines.engine_process import EngineProcess, running, write_model
from support.http_client import send
from support.program import Proxy, program
from support.waiting import eventually

pytestmark = pytest.mark.skipif(
    "INFINITY_PYTHON" not in os.environ, reason="INFINITY_PYTHON names no Python with infinity-emb[server,torch]"
)

EMBEDDINGS = "/v1/embeddings"
RERANK = "/v1/rerank"
TEXTS = ["hello world", "the quick brown fox"]


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Without the port."""
    python = os.environ["INFINITY_PYTHON"]
    folder = tmp_path_factory.mktemp("infinity")
    models = {kind: write_model(python, kind, folder) for kind in ("embed", "rerank")}
    options = "--no-model-warmup --no-compile --no-bettertransformer --lengths-via-tokenize --device cpu --engine torch"
    for kind, path in models.items():
        options += f" --model-id {path} --served-model-name tiny-{kind}"
    return [str(Path(python).parent / "infinity_emb"), "v2", *options.split(), "--host", "127.0.0.1"]


@pytest.fixture(scope="module")
def started(command: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[EngineProcess]]:
    def with_prefix(port: int) -> list[str]:
        return [*command, "--url-prefix", "/v1", "--port", str(port)]

    with running(2, with_prefix, tmp_path_factory.mktemp("engines")) as engines:
        yield engines


@pytest.fixture
async def proxy(engines: list[EngineProcess], tmp_path: Path) -> AsyncIterator[Proxy]:
    async with program(tmp_path, *engines, METRICS_CACHE_TTL_SECONDS="0.5") as running_proxy:
        for engine in engines:
            await running_proxy.becomes(engine, "up")
        yield running_proxy


def texts(*inputs: str) -> dict[str, Any]:
    return {"model": "tiny-embed", "input": inputs}


async def test_they_are_identified_with_their_models(proxy: Proxy) -> None:
    for detail in (await proxy.details()).values():
        assert (detail["engine"], detail["models"]) == ("infinity", ["tiny-embed", "tiny-rerank"])
        assert (detail["processing"], detail["metrics"]["queue_absolute"]) == (None, 0)


async def test_both_embed_alike_in_order_and_the_tokens_are_counted(proxy: Proxy, engines: list[EngineProcess]) -> None:
    replies: dict[str, Any] = {}
    while len(replies) < len(engines):
        reply = await proxy.post(EMBEDDINGS, texts(*TEXTS))
        assert reply.status == 200
        replies[reply.headers["x-backend"]] = reply.json
    one, other = replies.values()
    assert [vector["index"] for vector in one["data"]] == [0, 1]
    assert one["data"][0]["embedding"] != one["data"][1]["embedding"]
    for left, right in zip(one["data"], other["data"], strict=True):
        assert left["embedding"] == pytest.approx(right["embedding"], abs=1e-4)
    assert one["usage"]["prompt_tokens"] < len("".join(TEXTS))  # --lengths-via-tokenize

    async def are_counted() -> bool:
        counted = await proxy.metric("prompt_tokens_total", model="tiny-embed")
        return counted > 0 and counted % one["usage"]["prompt_tokens"] == 0

    await eventually(are_counted)


async def test_documents_are_reranked(proxy: Proxy) -> None:
    asked = {"model": "tiny-rerank", "query": "hello", "documents": TEXTS, "return_documents": True}
    reply = await proxy.post(RERANK, asked)
    assert reply.status == 200
    results = reply.json["results"]
    assert sorted(result["document"] for result in results) == sorted(TEXTS)
    assert results[0]["relevance_score"] >= results[1]["relevance_score"]


async def test_waiting_texts_are_shown(proxy: Proxy, engines: list[EngineProcess]) -> None:
    many = texts(*(f"hello world {number} " * 40 for number in range(600)))

    async def texts_wait() -> bool:
        return bool((await proxy.backend(engines[0]))["metrics"]["queue_absolute"] > 0)

    async with asyncio.TaskGroup() as group:
        requests = [group.create_task(send(engines[0].url, EMBEDDINGS, many)) for _ in range(2)]
        await eventually(texts_wait)
    assert {request.result().status for request in requests} == {200}


async def test_it_is_recognized_without_a_prefix(command: list[str], tmp_path: Path) -> None:
    with running(1, lambda port: [*command, "--port", str(port)], tmp_path) as (bare,):
        await bare.starts()

        async def get(path: str, json_body: bytes | None = None) -> PollReply:
            reply = await send(bare.url, path)
            return PollReply(reply.status, reply.body)

        assert await identify(discover_engines(), Probe(get)) is InfinityBackend


async def test_no_request_is_lost_when_one_is_killed(proxy: Proxy, engines: list[EngineProcess]) -> None:
    """The last test: one engine stays dead."""
    body = texts(*(f"hello world {number} " * 40 for number in range(60)))

    async def both_work() -> bool:
        return all([(await proxy.backend(engine))["requests_in_flight"] for engine in engines])

    async with asyncio.TaskGroup() as group:
        requests = [group.create_task(proxy.post(EMBEDDINGS, body)) for _ in range(8)]
        await eventually(both_work)
        engines[0].kill()
    replies = [request.result() for request in requests]
    assert {(reply.status, len(reply.json["data"])) for reply in replies} == {(200, 60)}
    await proxy.becomes(engines[0], "down")
    assert (await proxy.post(EMBEDDINGS, texts("hello"))).headers["x-backend"] == engines[1].url
