"""Streams that continue without their clients are located again, on real llama.cpp servers."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

import pytest

from end_to_end.conftest import StartProxy
from support.http_client import Call, Reply, chat, send
from support.llama_server import LlamaServer
from support.program import Proxy
from support.waiting import eventually

PATH = "/v1/chat/completions"
LONG = 1500  # tokens; takes seconds
DONE = b"data: [DONE]\n\n"


@pytest.fixture(scope="module")
def servers(slow_model: Path) -> Iterator[list[LlamaServer]]:
    with ExitStack() as stack:
        options = ("--slots", "2", "--context", "8192", "--http-threads", "32")
        yield [stack.enter_context(LlamaServer(slow_model, *options)) for _ in range(2)]


@pytest.fixture(autouse=True)
async def are_idle_again(servers: list[LlamaServer]) -> None:
    await eventually(lambda: sum(map(processing, servers)) == 0)


def processing(server: LlamaServer) -> float:
    return server.metrics()["llamacpp:requests_processing"]


def call(proxy: Proxy, conversation: str, tokens: int) -> Call:
    """A stream that its client can resume."""
    body = chat(tokens, stream=True, ignore_eos=True)
    return Call(proxy.url, PATH, body, headers={"X-Conversation-Id": conversation})


async def begin_and_disconnect(proxy: Proxy, conversation: str, tokens: int = LONG) -> tuple[str, bytes]:
    """Returns the backend of the stream and the bytes that its client has received."""
    async with call(proxy, conversation, tokens) as stream:
        stream.send()
        assert await stream.head() == 200
        return stream.headers["x-backend"], await stream.event()


async def again(proxy: Proxy, conversation: str, position: int = 0) -> Reply:
    return await send(proxy.url, f"/v1/stream?conv_id={quote(conversation)}&from={position}")


async def stop(proxy: Proxy, conversation: str) -> Reply:
    return await send(proxy.url, f"/v1/stream?conv_id={quote(conversation)}", method="DELETE")


async def test_client_that_disconnected_can_resume_its_stream(
    start_proxy: StartProxy, servers: list[LlamaServer]
) -> None:
    proxy = start_proxy(*servers)
    for conversation in ("one", "two words", "drei ü"):
        home, seen = await begin_and_disconnect(proxy, conversation, tokens=200)
        await eventually(lambda: holds_nothing(proxy), seconds=1)  # only the engine continues

        whole, rest = await again(proxy, conversation), await again(proxy, conversation, len(seen))

        assert {(reply.status, reply.headers["x-backend"], reply.complete) for reply in (whole, rest)} == {
            (200, home, True)
        }
        assert whole.body == seen + rest.body
        assert whole.body.count(b"data: ") > 200
        assert whole.body.endswith(DONE)


async def test_stream_without_its_client_continues_until_it_is_stopped(
    start_proxy: StartProxy, servers: list[LlamaServer]
) -> None:
    proxy = start_proxy(*servers)
    home, _ = await begin_and_disconnect(proxy, "left")
    server = next(server for server in servers if server.url == home)
    await eventually(lambda: holds_nothing(proxy), seconds=1)
    assert processing(server) == 1

    assert (await stop(proxy, "left")).status == 204

    await eventually(lambda: processing(server) == 0, seconds=1)
    assert (await again(proxy, "left")).status == 404


async def test_restarted_proxy_finds_and_stops_streams_by_asking(
    start_proxy: StartProxy, servers: list[LlamaServer]
) -> None:
    first = start_proxy(*servers)
    left = {home: number async for home, number in all_homes(first, servers, "found")}
    for conversation in left.values():
        second = start_proxy(*servers)
        reply = await again(second, conversation)
        assert (reply.status, reply.body.endswith(DONE)) == (200, True)
        assert left[reply.headers["x-backend"]] == conversation

    async for _, conversation in all_homes(first, servers, "stopped"):
        assert (await stop(start_proxy(*servers), conversation)).status == 204
        assert (await again(first, conversation)).status == 404
    await eventually(lambda: sum(map(processing, servers)) == 0, seconds=1)


async def test_conversation_stays_on_its_backend(start_proxy: StartProxy, servers: list[LlamaServer]) -> None:
    proxy = start_proxy(*servers)
    for number in range(4):
        turns = [await begin_and_disconnect(proxy, f"turns {number}", tokens=4) for _ in range(4)]
        assert len({home for home, _ in turns}) == 1


async def all_homes(proxy: Proxy, servers: list[LlamaServer], name: str) -> AsyncIterator[tuple[str, str]]:
    """Start a stream on every server; yields each backend with its conversation."""
    known: set[str] = set()
    for number in itertools.count():
        conversation = f"{name} {number}"
        home, _ = await begin_and_disconnect(proxy, conversation, tokens=300)
        if home in known:
            await stop(proxy, conversation)
        else:
            known.add(home)
            yield home, conversation
        if len(known) == len(servers):
            return


async def holds_nothing(proxy: Proxy) -> bool:
    return await proxy.in_flight() == 0
