"""A disconnect frees the slot within a second, on every path."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from support.http_client import Call, chat
from support.llama_server import LlamaServer
from support.program import Proxy
from support.waiting import eventually

Leave = Callable[[Call], Awaitable[None]]

LONG = 4000  # tokens; takes many seconds
PATH = "/v1/chat/completions"
RARE_POLLS = {"METRICS_CACHE_TTL_SECONDS": "60"}  # so that each connection to the engine belongs to a request


@pytest.fixture(scope="module")
def server(slow_model: Path) -> Iterator[LlamaServer]:
    with LlamaServer(slow_model, "--slots", "2", "--context", "8192", "--http-threads", "32") as running:
        yield running


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, server: LlamaServer) -> Iterator[Proxy]:
    with Proxy(tmp_path_factory.mktemp("proxy"), [server.url], **RARE_POLLS, BACKEND_QUEUE_ALLOWANCE="9") as running:
        yield running


@pytest.fixture(autouse=True)
async def is_idle_again(server: LlamaServer) -> None:
    await eventually(lambda: load(server) == (0, 0))


def load(server: LlamaServer) -> tuple[float, float]:
    """Numbers of running and queued requests, as reported by the server."""
    metrics = server.metrics()
    return metrics["llamacpp:requests_processing"], metrics["llamacpp:requests_deferred"]


async def has_let_go(proxy: Proxy, server: LlamaServer, connections: int = 0) -> None:
    """Wait at most a second until the proxy has released the client's connection and lease."""
    await eventually(lambda: proxy.connections_to(server.port) == connections, seconds=1)

    async def holds_no_more_leases() -> bool:
        return await proxy.in_flight() == connections

    await eventually(holds_no_more_leases, seconds=1)


@pytest.mark.parametrize("leave", [Call.leave, Call.reset, Call.half_close], ids=["FIN", "RST", "half-close"])
async def test_disconnect_during_a_stream_ends_its_generation(proxy: Proxy, server: LlamaServer, leave: Leave) -> None:
    async with Call(proxy.url, PATH, chat(LONG, stream=True)) as stream:
        stream.send()
        assert await stream.head() == 200
        assert await stream.event()
        assert load(server) == (1, 0)
        assert await proxy.in_flight() == 1

        await leave(stream)

        await has_let_go(proxy, server)
        await eventually(lambda: load(server) == (0, 0), seconds=1)


async def test_disconnect_while_queued_in_the_engine_closes_the_backend_connection(
    proxy: Proxy, server: LlamaServer
) -> None:
    """The engine sends nothing for a queued request, not even a header section."""
    async with AsyncExitStack() as stack:

        async def call(url: str, body: dict[str, object]) -> Call:
            entered = await stack.enter_async_context(Call(url, PATH, body))
            entered.send()
            return entered

        for _ in range(2):  # both slots
            await (await call(server.url, chat(LONG, stream=True))).head()
        queued = [await call(proxy.url, chat(stream=stream)) for stream in (True, True, False, False)]
        await eventually(lambda: load(server) == (2, 4))
        assert proxy.connections_to(server.port) == 4

        for leaving, leave in zip(queued, (Call.leave, Call.reset) * 2, strict=True):
            await leave(leaving)

        await has_let_go(proxy, server)
        assert load(server) == (2, 4)  # the engine notices when it takes them from its queue


async def test_disconnect_disturbs_no_other_request(proxy: Proxy, server: LlamaServer) -> None:
    async with Call(proxy.url, PATH, chat(600, stream=True)) as staying:
        staying.send()
        await staying.head()
        async with Call(proxy.url, PATH, chat(LONG, stream=True)) as leaving:
            leaving.send()
            await leaving.head()
        await has_let_go(proxy, server, connections=1)

        reply = await staying.reply()

    assert reply.complete
    assert reply.body.count(b'"content":"') == 600


async def test_disconnect_before_a_whole_reply_ends_its_generation(proxy: Proxy, server: LlamaServer) -> None:
    """llama.cpp would generate to the last token, but the proxy has asked it for a stream."""
    async with Call(proxy.url, PATH, chat(LONG)) as one, Call(proxy.url, PATH, chat(LONG)) as other:
        one.send()
        other.send()
        await eventually(lambda: load(server) == (2, 0))
        assert proxy.connections_to(server.port) == 2

        await one.leave()
        await other.reset()

        await has_let_go(proxy, server)
        await eventually(lambda: load(server) == (0, 0), seconds=1)
