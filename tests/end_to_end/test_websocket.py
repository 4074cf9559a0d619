"""WebSockets are relayed to one backend, message by message, in both directions and in every form."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from support.program import Proxy, fresh_program, program
from support.waiting import eventually
from support.websocket_engine import WebSocketEngine, websocket

MESSAGE = 1_000_000
MESSAGES = 60
HELD_BYTES = 30_000_000  # what kernels and both libraries keep of messages that nobody reads: half of them at most
GROWTH_BYTES = 8_000_000  # of the proxy's memory, whatever is sent


def resident_bytes(proxy: Proxy) -> int:
    status = Path(f"/proc/{proxy.pid}/status").read_text()
    return 1024 * int(status.partition("VmRSS:")[2].split()[0])


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_a_thousand_messages_come_back_in_order(tmp_path: Path, workers: str) -> None:
    async with WebSocketEngine() as engine, program(tmp_path, engine, WORKERS=workers) as proxy:
        async with websocket(proxy) as client:
            assert client.response is not None
            assert client.response.headers["x-backend"] == engine.url
            for number in range(1000):
                message = f"message {number}" if number % 2 else b"\0" * number
                await client.send(message)
                assert await client.recv() == message


@pytest.mark.parametrize("size", [125, 126, 65_535, 65_536, 8_000_000])
async def test_a_message_of_any_size_comes_back_unchanged(tmp_path: Path, size: int) -> None:
    message = random.randbytes(size)
    async with WebSocketEngine(compression=None) as engine, program(tmp_path, engine) as proxy:
        async with websocket(proxy, compression=None) as client:
            await client.send(message)
            assert await client.recv() == message
            await client.send([message[:100], message[100:]])  # in two frames
            assert await client.recv() == message


async def test_extensions_and_subprotocols_are_negotiated_with_the_engine(tmp_path: Path) -> None:
    offered = [Subprotocol("other"), Subprotocol("realtime")]
    async with WebSocketEngine(subprotocols=["realtime"]) as engine, program(tmp_path, engine) as proxy:
        async with websocket(proxy, subprotocols=offered) as client:
            assert client.subprotocol == "realtime"
            assert [one.name for one in client.protocol.extensions] == ["permessage-deflate"]
            text = "compressible " * 100_000
            await client.send(text)
            assert await client.recv() == text
        with pytest.raises(InvalidStatus, match="400"):  # the engine insists on a subprotocol
            await websocket(proxy)


async def test_pings_are_answered_by_the_other_side(tmp_path: Path) -> None:
    async with WebSocketEngine() as engine, program(tmp_path, engine) as proxy:
        async with websocket(proxy) as client:
            async with asyncio.timeout(30):
                await (await client.ping(b"to the engine"))
                await (await engine.sockets[0].ping(b"to the client"))


async def test_the_engine_sees_the_handshake_of_the_client(tmp_path: Path) -> None:
    async with WebSocketEngine() as engine, program(tmp_path, engine) as proxy:
        fields = {"Origin": "https://page.example", "Cookie": "a=b", "X-Forwarded-For": "6.6.6.6"}
        async with websocket(proxy, "/v1/%72ealtime?model=m&x=%20", additional_headers=fields) as client:
            assert client.request is not None
            sent, seen = client.request.headers, engine.handshakes[0].headers
        assert engine.handshakes[0].path == "/v1/%72ealtime?model=m&x=%20"
        for name in ("Origin", "Cookie", "Sec-WebSocket-Key", "Sec-WebSocket-Version", "Sec-WebSocket-Extensions"):
            assert seen.get_all(name) == sent.get_all(name)
        assert (seen["host"], seen["x-forwarded-host"]) == (engine.url.removeprefix("http://"), sent["host"])
        assert (seen["x-forwarded-for"], seen["x-forwarded-proto"]) == ("127.0.0.1", "http")
        assert seen["via"].startswith("1.1 inference-proxy-")
        assert seen.get_all("connection") == ["Upgrade"]
        assert client.response is not None
        assert seen["x-request-id"] == client.response.headers["x-request-id"]


async def test_open_websockets_are_counted_held_and_logged(tmp_path: Path) -> None:
    async with WebSocketEngine() as engine, program(tmp_path, engine) as proxy:
        open_ones = [await websocket(proxy) for _ in range(20)]

        assert await proxy.metric("websockets") == 20
        assert await proxy.in_flight() == 20
        await asyncio.gather(*(one.close() for one in open_ones))
        await eventually(proxy.is_at_rest)

        assert await proxy.metric("websockets") == 0
        assert await proxy.metric("requests_total", code="101", route="realtime", backend=engine.url) == 20
        await eventually(lambda: len(proxy.access_lines) == 20)
        for line in proxy.access_lines:
            assert (line.path, line.status, line.outcome) == ("/v1/realtime", 101, "complete")
            assert line.backend == engine.url


async def test_the_model_in_the_query_chooses_the_backend(tmp_path: Path) -> None:
    async with WebSocketEngine(model="one") as one, WebSocketEngine(model="two") as two:
        async with program(tmp_path, one, two) as proxy:
            for model, engine in (("one", one), ("two", two)):
                async with websocket(proxy, f"/v1/realtime?model={model}"):
                    assert len(engine.sockets) == 1
            with pytest.raises(InvalidStatus) as refused:
                await websocket(proxy, "/v1/realtime?model=three")
            assert refused.value.response.status_code == 404
            assert b"model_not_found" in refused.value.response.body


async def test_a_burst_is_spread_evenly(tmp_path: Path) -> None:
    async with WebSocketEngine() as one, WebSocketEngine() as two, program(tmp_path, one, two) as proxy:
        open_ones = [await websocket(proxy) for _ in range(10)]
        assert (len(one.sockets), len(two.sockets)) == (5, 5)
        await asyncio.gather(*(client.close() for client in open_ones))


async def test_a_client_that_does_not_read_stops_the_engine(tmp_path: Path) -> None:
    sent: list[bytes] = []

    async def talks(socket: ServerConnection) -> None:
        for number in range(MESSAGES):
            await socket.send(bytes([number]) * MESSAGE)
            sent.append(b"")

    async with WebSocketEngine(talks, compression=None) as engine, fresh_program(tmp_path, engine) as proxy:
        before = resident_bytes(proxy)
        async with websocket(proxy, compression=None, max_queue=1) as client:
            count = await _settled(sent)
            assert count * MESSAGE < HELD_BYTES
            assert resident_bytes(proxy) - before < GROWTH_BYTES
            async with asyncio.timeout(60):
                for number in range(MESSAGES):
                    assert await client.recv() == bytes([number]) * MESSAGE


async def test_an_engine_that_does_not_read_stops_the_client(tmp_path: Path) -> None:
    may_read = asyncio.Event()

    async def talks(socket: ServerConnection) -> None:
        async with asyncio.timeout(60):
            await may_read.wait()
        for number in range(MESSAGES):
            assert await socket.recv() == bytes([number]) * MESSAGE
        await socket.send("all")

    sent: list[bytes] = []
    async with (
        WebSocketEngine(talks, compression=None, max_queue=1) as engine,
        fresh_program(tmp_path, engine) as proxy,
    ):
        before = resident_bytes(proxy)
        async with websocket(proxy, compression=None) as client:

            async def send_all() -> None:
                for number in range(MESSAGES):
                    await client.send(bytes([number]) * MESSAGE)
                    sent.append(b"")

            async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
                tasks.create_task(send_all())
                count = await _settled(sent)
                assert count * MESSAGE < HELD_BYTES
                assert resident_bytes(proxy) - before < GROWTH_BYTES
                may_read.set()
            assert await client.recv() == "all"


async def _settled(sent: list[bytes]) -> int:
    """How many messages were sent when no more can be for half a second."""
    count = -1
    while count < len(sent):
        count = len(sent)
        await asyncio.sleep(0.5)
    return count
