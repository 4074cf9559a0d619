"""The recipes of docs/clients.md work as described."""

from __future__ import annotations

import asyncio
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from clients.browser import answer_shown
from clients.recipes import BLOCKS, MODEL, Block, output_of, run, start
from support.http_client import send
from support.llama_server import LlamaServer
from support.program import Proxy, program
from support.waiting import eventually
from support.websocket_engine import WebSocketEngine

WITH_WHAT_TESTS_NEED = ("OpenAI SDK, Python", "Anthropic SDK, Python")
WITH_MORE = ("OpenAI SDK, Node", "Anthropic SDK, Node", "LangChain")
SDKS = (*WITH_WHAT_TESTS_NEED, *(pytest.param(name, marks=pytest.mark.clients) for name in WITH_MORE))
RUN = {"curl", "curl 2", "Browser", "WebSocket, Python", *WITH_WHAT_TESTS_NEED, *WITH_MORE}

PREFLIGHT = {
    "Origin": "http://page.example",
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type",
}
WHO_ANSWERED = re.compile(r"^[\w-]+ (http://\S+)$", re.MULTILINE)
PARSERS: dict[str, Callable[[str], object]] = {"json": json.loads, "toml": tomllib.loads, "yaml": yaml.safe_load}


def named_backend(text: str, servers: list[LlamaServer]) -> bool:
    """Whether a line has a request id and the backend that answered it."""
    return any(found[1] in {server.url for server in servers} for found in WHO_ANSWERED.finditer(text))


def test_each_code_block_is_tested_or_declared_untested() -> None:
    assert {name for name, block in BLOCKS.items() if block.is_run} == RUN


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS.values() if not block.is_run], ids=lambda block: block.name
)
def test_configuration_example_is_valid_and_names_the_proxy(block: Block) -> None:
    assert re.search(r"http://(127\.0\.0\.1|host\.docker\.internal):8888", block.text)
    if block.language != "bash":
        assert PARSERS[block.language](block.text)


def test_curl(proxy: Proxy, servers: list[LlamaServer], tmp_path: Path) -> None:
    head, _, body = run(BLOCKS["curl"], proxy.url, tmp_path).text.partition("\r\n\r\n")

    assert json.loads(body)["choices"][0]["message"]["content"]
    fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:])
    assert fields["x-request-id"]
    assert fields["x-backend"] in {server.url for server in servers}


def test_curl_streaming(proxy: Proxy, tmp_path: Path) -> None:
    events = run(BLOCKS["curl 2"], proxy.url, tmp_path).text.split("\n\n")

    assert events[-2:] == ["data: [DONE]", ""]
    assert len([event for event in events if '"content":"' in event]) == 60


@pytest.mark.parametrize("name", SDKS)
def test_sdk(name: str, proxy: Proxy, servers: list[LlamaServer], tmp_path: Path) -> None:
    output = run(BLOCKS[name], proxy.url, tmp_path)

    assert named_backend(output.text, servers)
    assert len(output.pieces) > 50  # of 60 tokens, each written when it arrives
    at_once, streamed = "".join(output.pieces[:-50]), "".join(output.pieces[-50:])
    assert len(WHO_ANSWERED.sub("", at_once)) > 80
    assert len(streamed) > 50


@pytest.mark.parametrize("name", SDKS)
async def test_sdk_obeys_retry_after(
    name: str, lonely_proxy: Proxy, free_port: int, tiny_model: Path, tmp_path: Path
) -> None:
    recipe = start(BLOCKS[name], lonely_proxy.url, tmp_path)
    await eventually(lambda: any(line.status == 503 for line in lonely_proxy.access_lines))

    with LlamaServer(tiny_model, "--alias", MODEL, port=free_port) as server:
        assert named_backend(output_of(recipe, tmp_path).text, [server])


async def test_websocket(tmp_path: Path) -> None:
    async with WebSocketEngine(model=MODEL) as engine, program(tmp_path / "proxy", engine) as proxy:
        (tmp_path / "recipe").mkdir()
        output = await asyncio.to_thread(run, BLOCKS["WebSocket, Python"], proxy.url, tmp_path / "recipe")

    who, said = output.text.splitlines()
    assert WHO_ANSWERED.fullmatch(who)
    assert json.loads(said) == {"type": "session.update", "model": MODEL}


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models"])
async def test_page_of_another_origin_may_call_the_api(path: str, proxy: Proxy, lonely_proxy: Proxy) -> None:
    for asked in (proxy, lonely_proxy):
        reply = await send(asked.url, path, method="OPTIONS", headers=PREFLIGHT)
        assert 200 <= reply.status < 300
        assert reply.headers["access-control-allow-origin"] in ("*", PREFLIGHT["Origin"])
        assert reply.headers["access-control-allow-headers"].endswith("*")


@pytest.mark.clients
def test_browser(proxy: Proxy, tmp_path: Path) -> None:
    models, _, answer = answer_shown(BLOCKS["Browser"].at(proxy.url), tmp_path).partition("\n")

    assert models == f"Models: {MODEL}"
    assert len(answer) > 60
    assert "Error" not in answer
    asked = [(line.method, line.path) for line in proxy.access_lines][-3:]
    assert asked == [
        ("GET", "/v1/models"),
        ("OPTIONS", "/v1/chat/completions"),
        ("POST", "/v1/chat/completions"),
    ]


@pytest.mark.clients
def test_browser_shows_the_error_when_all_engines_are_down(lonely_proxy: Proxy, tmp_path: Path) -> None:
    models, _, answer = answer_shown(BLOCKS["Browser"].at(lonely_proxy.url), tmp_path).partition("\n")

    assert models == "Models: "
    request_id = lonely_proxy.access_lines[-1].request_id
    expected = f"Error: 503 No backend is available. Try again in seconds: 3. Request: {request_id}"
    assert answer == expected
