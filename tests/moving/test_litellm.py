"""docs/moving-from-litellm.md: LiteLLM and this proxy, each with its blocks of the page, before the same engines."""

from __future__ import annotations

import asyncio
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from moving.conftest import StartEngines
from moving.pages import addresses, block, blocks, page, pointed_at
from moving.programs import LITELLM, ask, content, running
from proxies.proxy import virtual_environment
from support.http_client import chat, send
from support.llama_server import LlamaServer
from support.ports import free_port
from support.program import Proxy

PAGE = page("moving-from-litellm")
(ASK,) = (one for one in blocks(PAGE, "bash") if one.startswith("curl "))
KEYS = block(PAGE, "yaml", "keys.yaml")
NAMES = ("qwen3-14b", "qwen3-14b", "qwen3-4b")
KEY = yaml.safe_load(KEYS)["keys"][0]["secret"]
HEADERS = {"Authorization": f"Bearer {KEY}"}
(ALICE,) = re.findall(r"is that of `(sk-\S+)`", PAGE)
PYTHON = virtual_environment("litellm") / "bin" / "python"

StartLitellm = Callable[[str], str]
StartOurs = Callable[[list[LlamaServer]], Proxy]


def hash_of_litellm(secret: str) -> str:
    """What it stores of a virtual key."""
    hashing = f"from litellm.proxy._types import hash_token; print(hash_token({secret!r}))"
    done = subprocess.run([PYTHON, "-c", hashing], capture_output=True, text=True, check=True)
    return done.stdout.split()[-1]


@pytest.fixture
def litellm(tmp_path: Path) -> Iterator[StartLitellm]:
    """Starts LiteLLM with a configuration; gives its base URL."""
    with ExitStack() as stack:

        def start(configuration: str) -> str:
            port = free_port()
            folder = tmp_path / f"litellm-{port}"
            folder.mkdir()
            (folder / "config.yaml").write_text(configuration)
            arguments = ["--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port)]
            return stack.enter_context(running(LITELLM, folder, arguments, port, "/health/liveliness"))

        yield start


@pytest.fixture
def ours(tmp_path: Path) -> Iterator[StartOurs]:
    """Starts this proxy with the files of the page."""
    with ExitStack() as stack:

        def start(engines: list[LlamaServer]) -> Proxy:
            folder = tmp_path / "ours"
            folder.mkdir()
            (folder / "fleet.yaml").write_text(pointed_at(block(PAGE, "yaml", "fleet.yaml"), addresses(engines)))
            (folder / "keys.yaml").write_text(KEYS)
            return stack.enter_context(Proxy(folder, [], CONFIG_FILE="fleet.yaml"))

        yield start


async def test_the_request_of_the_page_has_the_same_answer_through_both(
    litellm: StartLitellm, ours: StartOurs, start_engines: StartEngines
) -> None:
    engines = start_engines(*NAMES)
    theirs = await asyncio.to_thread(litellm, pointed_at(block(PAGE, "yaml", "litellm.yaml"), addresses(engines)))
    proxy = await asyncio.to_thread(ours, engines)

    replies = [await asyncio.to_thread(ask, ASK, url) for url in (theirs, proxy.url)]
    assert content(replies[0]) == content(replies[1])
    assert [reply["usage"]["completion_tokens"] for reply in replies] == [12, 12]  # the default of the configuration
    assert [reply["model"] for reply in replies] == ["gpt-4o", "qwen3-14b"]

    for engine in engines[:2]:
        engine.kill()
    answers = [await asyncio.to_thread(ask, ASK, url) for url in (theirs, proxy.url)]
    assert content(answers[0])
    assert content(answers[1])
    reply = await proxy.post(body=chat(model="gpt-4o"), **HEADERS)
    assert (reply.headers["x-backend"], reply.headers["x-fallback-model"]) == (engines[2].url, "qwen3-4b")


async def test_a_virtual_key_of_litellm_is_accepted(ours: StartOurs, start_engines: StartEngines) -> None:
    assert yaml.safe_load(KEYS)["keys"][1]["sha256"] == await asyncio.to_thread(hash_of_litellm, ALICE)
    proxy = await asyncio.to_thread(ours, start_engines(*NAMES))
    headers = {"Authorization": f"Bearer {ALICE}"}
    assert (await proxy.post(body=chat(model="qwen3-14b"), **headers)).status == 200
    assert (await proxy.post(body=chat(model="qwen3-4b"), **headers)).status == 403
    assert (await proxy.post(body=chat(model="qwen3-14b"), Authorization="Bearer sk-another")).status == 401


def test_the_database_of_litellm_has_the_columns_of_the_query() -> None:
    (query,) = blocks(PAGE, "sql")
    (schema,) = (virtual_environment("litellm") / "lib").glob("*/site-packages/litellm/proxy/schema.prisma")
    table = schema.read_text().partition("model LiteLLM_VerificationToken {")[2].partition("\n}")[0]
    columns = set(re.findall(r"^    (\w+) ", table, re.MULTILINE))
    named = set(re.findall(r"[a-z_]{5,}", query.partition("SELECT")[2].partition("FROM")[0])) | {"blocked"}
    assert len(named) == 8
    assert named <= columns


async def test_litellm_works_in_front(litellm: StartLitellm, ours: StartOurs, start_engines: StartEngines) -> None:
    proxy = await asyncio.to_thread(ours, start_engines(*NAMES))
    configuration = block(PAGE, "yaml", "in-front.yaml")
    theirs = await asyncio.to_thread(
        litellm, pointed_at(configuration, {"127.0.0.1:8888": proxy.url.removeprefix("http://")})
    )
    headers = {"Authorization": f"Bearer {yaml.safe_load(configuration)['general_settings']['master_key']}"}
    reply = await send(theirs, "/v1/chat/completions", chat(model="qwen3-14b"), headers=headers)
    assert content(reply.json) == content((await proxy.post(body=chat(model="qwen3-14b"), **HEADERS)).json)
