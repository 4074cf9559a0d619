"""A request without ``stream`` ends with its client, and survives its engine; with real llama.cpp servers."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from end_to_end.conftest import StartProxy, StartServers
from support.counters import counted
from support.http_client import Call, Reply, chat, send
from support.llama_server import LlamaServer
from support.program import Proxy
from support.waiting import eventually

PATH = "/v1/chat/completions"
TOKENS = 800
QUICK = {"METRICS_CACHE_TTL_SECONDS": "0.5", "SLOW_START_SECONDS": "0"}
RESUMES = "inference_proxy_stream_resumes_total"
RESULTS = "inference_proxy_assembled_replies_total"


def processing(server: LlamaServer) -> float:
    return server.metrics()["llamacpp:requests_processing"]


async def served_by(proxy: Proxy, servers: list[LlamaServer]) -> LlamaServer:
    """The server that has generated some tokens of the only request."""
    busy: list[LlamaServer] = await eventually(lambda: [server for server in servers if processing(server)])
    [server] = busy
    await asyncio.sleep(0.3)  # at least two tokens
    return server


def words_of(number: int) -> str:
    return " ".join(["kin", "sol", "mer", "tas"][number % 4 :])


async def answer(url: str, number: int = 0, **fields: Any) -> Reply:
    body = {**chat(TOKENS, **fields), "messages": [{"role": "user", "content": words_of(number)}]}
    return await send(url, PATH, body)


def is_whole(reply: Reply) -> bool:
    choice = reply.json["choices"][0]
    usage = reply.json["usage"]
    return (
        (reply.status, reply.complete, choice["finish_reason"], usage["completion_tokens"])
        == (200, True, "length", TOKENS)
        and usage["total_tokens"] == usage["prompt_tokens"] + TOKENS
        and reply.headers["content-type"] == "application/json; charset=utf-8"
    )


@pytest.fixture
async def streaming_server(start_servers: StartServers, slow_model: Path) -> AsyncIterator[LlamaServer]:
    """A server that streams to another client.

    Without a stream, llama.cpp looks for a disconnect only after a second without any result of any request.
    """
    [server] = start_servers(1, slow_model, "--slots", "2", "--context", "8192")
    async with Call(server.url, PATH, chat(4000, stream=True)) as other:
        other.send()
        await other.head()
        yield server
        assert processing(server)  # it streamed to the end of the test


@pytest.mark.parametrize("leave", [Call.leave, Call.reset], ids=["FIN", "RST"])
async def test_a_client_that_leaves_frees_its_slot_within_a_second(
    start_proxy: StartProxy, streaming_server: LlamaServer, leave: Callable[[Call], Awaitable[None]]
) -> None:
    proxy = start_proxy(streaming_server)
    async with Call(proxy.url, PATH, chat(4000)) as call:
        call.send()
        await eventually(lambda: processing(streaming_server) == 2)
        await leave(call)
        await eventually(lambda: processing(streaming_server) == 1, seconds=1)


async def test_without_the_setting_llama_cpp_computes_for_nobody(
    start_proxy: StartProxy, streaming_server: LlamaServer
) -> None:
    proxy = start_proxy(streaming_server, ASSEMBLE_REPLIES="false")
    async with Call(proxy.url, PATH, chat(4000)) as call:
        call.send()
        await eventually(lambda: processing(streaming_server) == 2)
        await call.leave()
    await asyncio.sleep(2)
    assert processing(streaming_server) == 2
    assert not await counted(proxy, RESULTS)


async def text_of(url: str, body: dict[str, Any]) -> str:
    text: str = (await send(url, PATH, body)).json["choices"][0]["message"]["content"]
    return text


async def expected_text(server: LlamaServer, number: int, tokens: int) -> str:
    """What a server says that continues its own answer after this many tokens; 0: without an interruption."""
    body: dict[str, Any] = {**chat(TOKENS), "messages": [{"role": "user", "content": words_of(number)}]}
    if not tokens:
        return await text_of(server.url, body)
    begun = await text_of(server.url, {**body, "max_tokens": tokens})
    messages = [*body["messages"], {"role": "assistant", "content": begun}]
    stream = {**body, "messages": messages, "max_tokens": TOKENS - tokens}
    return begun + (await text_of(server.url, stream)).removeprefix(begun)


async def test_an_answer_of_a_killed_server_continues_on_another_one(
    start_proxy: StartProxy, start_servers: StartServers, slow_model: Path
) -> None:
    servers = start_servers(3, slow_model, "--slots", "4", "--context", "8192", "--precise")
    proxy = start_proxy(*servers, **QUICK)
    async with asyncio.TaskGroup() as group:
        replies = [group.create_task(answer(proxy.url, number)) for number in range(3)]
        await eventually(lambda: all(processing(server) for server in servers))
        await asyncio.sleep(0.5)
        servers[0].kill()
    assert all(is_whole(reply.result()) for reply in replies)
    assert await counted(proxy, RESUMES) == {"backend_disconnected": 1}
    assert await counted(proxy, RESULTS) == {"assembled": 3}
    [tokens] = [int(found) for found in re.findall(r"its stream broke after (\d+) tokens", proxy.events)]
    said = [reply.result().json["choices"][0]["message"]["content"] for reply in replies]
    whole = [await expected_text(servers[1], number, 0) for number in range(3)]
    [cut] = [number for number in range(3) if said[number] != whole[number]] or [0]
    assert said[cut] in (whole[cut], await expected_text(servers[1], cut, tokens))


@pytest.mark.parametrize("settings", [{"STREAM_RESUME": "off"}, {"STREAM_RESUME": "header"}], ids=["off", "header"])
async def test_an_answer_that_must_not_be_continued_is_generated_anew(
    start_proxy: StartProxy, two_slow_servers: list[LlamaServer], settings: dict[str, str]
) -> None:
    proxy = start_proxy(*two_slow_servers, **QUICK, **settings)
    async with asyncio.TaskGroup() as group:
        reply = group.create_task(answer(proxy.url))
        server = await served_by(proxy, two_slow_servers)
        server.kill()
    assert is_whole(reply.result())
    assert not await counted(proxy, RESUMES)
    assert await counted(proxy, RESULTS) == {"broken": 1}
    assert reply.result().headers["x-backend"] != server.url


async def test_an_object_by_a_schema_is_generated_anew(
    start_proxy: StartProxy, two_slow_servers: list[LlamaServer]
) -> None:
    proxy = start_proxy(*two_slow_servers, **QUICK)
    schema = {"type": "array", "items": {"type": "string"}, "minItems": 500}
    wanted = {"type": "json_schema", "json_schema": {"name": "words", "schema": schema}}
    async with asyncio.TaskGroup() as group:
        reply = group.create_task(answer(proxy.url, response_format=wanted))
        (await served_by(proxy, two_slow_servers)).kill()
    assert is_whole(reply.result())
    assert reply.result().json["choices"][0]["message"]["content"].startswith("[")
    assert await counted(proxy, "inference_proxy_stream_resume_refusals_total") == {"structured_output": 1}
    assert await counted(proxy, RESULTS) == {"broken": 1}


async def test_the_answer_of_a_frozen_server_continues(
    start_proxy: StartProxy, two_slow_servers: list[LlamaServer]
) -> None:
    proxy = start_proxy(*two_slow_servers)
    async with asyncio.TaskGroup() as group:
        reply = group.create_task(answer(proxy.url))
        frozen = await served_by(proxy, two_slow_servers)
        other = next(server for server in two_slow_servers if server is not frozen)
        frozen.freeze()
        await eventually(lambda: processing(other))
    assert is_whole(reply.result())
    assert await counted(proxy, RESUMES) == {"request_moved": 1}


async def test_draining_with_move_moves_answers_that_are_not_streamed(
    start_proxy: StartProxy, two_slow_servers: list[LlamaServer]
) -> None:
    proxy = start_proxy(*two_slow_servers, **QUICK, ADMIN_KEY="op")
    async with asyncio.TaskGroup() as group:
        replies = [group.create_task(answer(proxy.url, number)) for number in range(2)]
        # One cannot be continued, and is generated anew.
        replies.append(group.create_task(answer(proxy.url, 2, presence_penalty=0.1)))
        await eventually(lambda: sum(map(processing, two_slow_servers)) == 3)
        await asyncio.sleep(0.5)
        drained = max(two_slow_servers, key=processing)
        name = drained.url.removeprefix("http://")
        path = f"/admin/backends/{name}/drain?move=1&wait_seconds=5"
        reply = await send(proxy.url, path, method="POST", headers={"Authorization": "Bearer op"})
        assert reply.json["safe_to_stop"]
        assert not any(one.done() for one in replies)
        drained.kill()
    assert all(is_whole(one.result()) for one in replies)
