"""The llama.cpp servers of the tests behave as other tests assume."""

from __future__ import annotations

import asyncio
import http.client
import json
import select
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from inference_engine_proxy_server.backends.base import Api, BackendState, Reply, Thresholds
from inference_engine_proxy_server.backends.llamacpp import LlamaCppBackend
from support.llama_server import LlamaServer
from support.tiny_gguf import ModelShape, whole_words, write_tiny_gguf


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[LlamaServer]:
    with LlamaServer(tiny_model, "--slots", "2", "--context", "8192") as running:
        yield running


def ask(server: LlamaServer, **fields: object) -> http.client.HTTPResponse:
    """Send a chat completion; returns the reply before its body is read."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    request = {"messages": [{"role": "user", "content": "kin sol mer"}], **fields}
    connection.request("POST", "/v1/chat/completions", json.dumps(request), {"Connection": "close"})
    return connection.getresponse()


def eventually(condition: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not (fulfilled := condition()) and time.monotonic() < deadline:
        time.sleep(0.005)
    return fulfilled


def state(server: LlamaServer) -> BackendState:
    """The state that the proxy reads from it now."""

    async def get(path: str, json_body: bytes | None = None) -> Reply:
        with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)) as connection:
            method = "GET" if json_body is None else "POST"
            fields = {"Connection": "close", "Content-Type": "application/json"}
            connection.request(method, path, json_body, fields)
            reply = connection.getresponse()
            return Reply(reply.status, reply.read())

    return asyncio.run(LlamaCppBackend(server.url, get, Thresholds(6, 3)).fetch_state())


def test_same_seed_writes_the_same_model(tiny_model: Path, tmp_path: Path) -> None:
    again = write_tiny_gguf(tmp_path / "again.gguf")
    other = write_tiny_gguf(tmp_path / "other.gguf", ModelShape(seed=1))
    assert again.read_bytes() == tiny_model.read_bytes() != other.read_bytes()


def test_model_of_words_writes_only_words(tmp_path: Path) -> None:
    model = write_tiny_gguf(tmp_path / "words.gguf", ModelShape(only_words=True))
    with LlamaServer(model) as words_server, ask(words_server, max_tokens=200) as reply:
        text = json.loads(reply.read())["choices"][0]["message"]["content"]
    assert len(text) == 4 * 200
    assert set(text.split()) <= set(whole_words())


@pytest.mark.parametrize("max_tokens", [1, 40, 3000])
def test_reply_has_exactly_max_tokens(server: LlamaServer, max_tokens: int) -> None:
    with ask(server, max_tokens=max_tokens) as reply:
        answer = json.loads(reply.read())
    assert answer["usage"]["completion_tokens"] == max_tokens
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["choices"][0]["message"]["content"]


def test_stream_ends_with_done(server: LlamaServer) -> None:
    with ask(server, max_tokens=20, stream=True) as reply:
        events = reply.read().decode().split("\n\n")
    assert reply.headers["Content-Type"].startswith("text/event-stream")
    assert sum('"content":"' in event for event in events) == 20
    assert events[-2:] == ["data: [DONE]", ""]


def test_third_request_of_two_slots_is_deferred(tiny_model: Path) -> None:
    slow_model = write_tiny_gguf(tiny_model.with_name("slow.gguf"), ModelShape(embedding=256, layers=4))
    with LlamaServer(slow_model, "--slots", "2") as slow:

        def load() -> tuple[float, float]:
            metrics = slow.metrics()
            return metrics["llamacpp:requests_processing"], metrics["llamacpp:requests_deferred"]

        assert load() == (0, 0)
        with closing(http.client.HTTPConnection("127.0.0.1", slow.port, timeout=60)) as third:
            with ask(slow, max_tokens=1500, stream=True), ask(slow, max_tokens=1500, stream=True):
                # A deferred request gets its header section only with its slot, so the test cannot wait for it here.
                third.request("POST", "/completion", json.dumps({"prompt": "sol", "n_predict": 3}))
                assert eventually(lambda: load() == (2, 1))
            assert third.getresponse().status == 200  # the disconnected clients have freed their slots
        assert eventually(lambda: load() == (0, 0))


def test_capacity_is_the_number_of_slots(server: LlamaServer, tiny_model: Path) -> None:
    assert state(server).capacity == 2
    with LlamaServer(tiny_model, "--slots", "3", "--no-metrics") as other:
        assert (state(other).capacity, state(other).progress) == (3, None)


def test_progress_counter_stands_still_while_idle(server: LlamaServer) -> None:
    with ask(server, max_tokens=5) as reply:
        reply.read()
    assert eventually(lambda: state(server).requests_processing == 0)
    seen = {state(server).progress for _ in range(20)}
    assert len(seen) == 1
    assert seen != {None}


def test_progress_counter_moves_while_streaming(tiny_model: Path) -> None:
    slow_model = write_tiny_gguf(tiny_model.with_name("slow-stream.gguf"), ModelShape(embedding=256, layers=4))
    with LlamaServer(slow_model) as slow:
        seen: list[float] = []
        with ask(slow, max_tokens=1500, stream=True) as reply:
            assert reply.readline()
            while len(set(seen)) < 5:
                reported = state(slow)
                assert reported.requests_processing == 1
                assert reported.progress is not None
                seen.append(reported.progress)
        assert seen == sorted(seen)


def test_progress_counter_moves_while_a_long_prompt_is_read(tiny_model: Path) -> None:
    model = write_tiny_gguf(tiny_model.with_name("long.gguf"), ModelShape(embedding=128, context=16384))
    prompt = "kin sol mer " * 2500  # three tokens each; a batch has 2048 tokens
    with (
        LlamaServer(model, "--slots", "1", "--context", "16384") as server,
        closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)) as connection,
    ):
        connection.request("POST", "/completion", json.dumps({"prompt": prompt, "n_predict": 1}))
        seen = []
        while not select.select([connection.sock], [], [], 0.005)[0]:
            reported = state(server)
            # Other counters change only at the end of a prompt, and cannot tell a long prompt from a stuck engine.
            if reported.requests_processing and not reported.figures["llamacpp:prompt_tokens_total"]:
                seen.append(reported.progress)
        assert connection.getresponse().status == 200
    assert {0, 1, 2} <= set(seen)


def test_server_without_metrics_answers_501(tiny_model: Path) -> None:
    with LlamaServer(tiny_model, "--no-metrics") as server, pytest.raises(RuntimeError, match="501"):
        server.metrics()


def test_alias_and_key_are_used(tiny_model: Path) -> None:
    with LlamaServer(tiny_model, "--alias", "mina", "--api-key", "sesame") as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.request("GET", "/v1/models", headers={"Authorization": "Bearer sesame", "Connection": "close"})
        models = json.loads(connection.getresponse().read())
        connection.close()
        assert [model["id"] for model in models["data"]] == ["mina"]
        assert server.status("/slots") == 401


def test_loading_of_a_large_model_is_observable(tmp_path: Path) -> None:
    large = write_tiny_gguf(tmp_path / "large.gguf", ModelShape(embedding=512, layers=8))
    with LlamaServer(large, wait=False) as server:
        seen: list[int | None] = []

        def is_ready() -> bool:
            seen.append(server.status())
            return seen[-1] == 200

        assert eventually(is_ready)
        server.wait_until_ready()
    assert list(dict.fromkeys(seen)) == [None, 503, 200]


def test_frozen_server_is_silent_until_thawed(tiny_model: Path) -> None:
    with LlamaServer(tiny_model) as server:
        server.freeze()
        with closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=0.3)) as connection:
            connection.request("GET", "/health")
            with pytest.raises(TimeoutError):
                connection.getresponse()
        server.thaw()
        assert server.status() == 200


def test_killed_server_can_come_back_on_its_port(tiny_model: Path) -> None:
    with LlamaServer(tiny_model) as server:
        server.kill()
        assert server.status() is None
        with LlamaServer(tiny_model, port=server.port) as successor:
            assert successor.url == server.url
            assert successor.status() == 200


def test_log_of_a_server_that_cannot_start_is_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"no model")
    with pytest.raises(RuntimeError, match="invalid magic"):
        LlamaServer(tmp_path / "broken.gguf")


@pytest.mark.parametrize(("options", "continues"), [((), True), (("--no-prefill",), False)])
def test_a_server_shows_whether_it_continues_messages(
    tiny_model: Path, options: tuple[str, ...], continues: bool
) -> None:
    with LlamaServer(tiny_model, *options) as started:
        assert (Api.MESSAGES in state(started).continued_apis) is continues
