"""However a WebSocket ends, both sides notice at once, and the backend is free again."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK, InvalidStatus

from support.http_client import send
from support.program import Proxy, program
from support.waiting import eventually
from support.websocket_engine import EngineProcess, WebSocketEngine, websocket

ADMIN = "key-of-the-operators"
LONG = "3600"


def outcomes(proxy: Proxy) -> list[str]:
    """How the WebSockets in the access log ended."""
    return sorted(line.outcome for line in proxy.access_lines if line.status == 101)


async def test_a_close_by_the_client_reaches_the_engine_with_code_and_reason(tmp_path: Path) -> None:
    async with WebSocketEngine() as engine, program(tmp_path, engine) as proxy:
        client = await websocket(proxy)
        await client.close(4001, "the user hung up")

        await eventually(lambda: engine.closes == [(4001, "the user hung up")])
        assert client.close_code == 4001
        await eventually(proxy.is_at_rest)
        await eventually(lambda: outcomes(proxy) == ["complete"])


async def test_a_close_by_the_engine_reaches_the_client_with_code_and_reason(tmp_path: Path) -> None:
    async def talks(socket: ServerConnection) -> None:
        await socket.send("the last words")
        await socket.close(4002, "the session is over")

    async with WebSocketEngine(talks) as engine, program(tmp_path, engine) as proxy:
        async with websocket(proxy) as client:
            assert await client.recv() == "the last words"
            with pytest.raises(ConnectionClosedError) as closed:
                await client.recv()
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (4002, "the session is over")
        await eventually(proxy.is_at_rest)
        await eventually(lambda: outcomes(proxy) == ["complete"])


async def test_an_engine_that_is_killed_ends_the_websocket_abnormally(tmp_path: Path) -> None:
    with EngineProcess() as engine:
        async with program(tmp_path, engine, METRICS_CACHE_TTL_SECONDS=LONG) as proxy:
            async with websocket(proxy) as client:
                await client.send("hello")
                assert await client.recv() == "hello"
                engine.kill()
                async with asyncio.timeout(2):
                    with pytest.raises(ConnectionClosedError) as closed:
                        await client.recv()
                assert closed.value.rcvd is None  # no close frame: code 1006
            await eventually(proxy.is_at_rest)
            with pytest.raises(InvalidStatus, match=r"50[23]"):
                await websocket(proxy)


@pytest.mark.parametrize("is_talking", [False, True])
async def test_a_client_that_is_killed_frees_the_backend(tmp_path: Path, is_talking: bool) -> None:
    async def talks(socket: ServerConnection) -> None:
        while is_talking:
            await socket.send("word")
            await asyncio.sleep(0.01)
        await socket.wait_closed()

    async with WebSocketEngine(talks) as engine, program(tmp_path, engine) as proxy:
        client = await websocket(proxy)
        await eventually(lambda: engine.sockets)
        client.transport.abort()

        await eventually(lambda: [code for code, _ in engine.closes] == [1006], seconds=2)
        await eventually(proxy.is_at_rest)


async def test_an_idle_websocket_is_closed_and_a_ping_keeps_it_open(tmp_path: Path) -> None:
    async with WebSocketEngine() as engine, program(tmp_path, engine, WEBSOCKET_IDLE_TIMEOUT_SECONDS="1") as proxy:
        async with websocket(proxy, ping_interval=0.3) as lively, websocket(proxy) as idle:
            async with asyncio.timeout(20):
                with pytest.raises(ConnectionClosedError) as closed:
                    await idle.recv()
            assert closed.value.rcvd is None
            await lively.send("still here")
            assert await lively.recv() == "still here"
        assert "its WebSocket was idle and is closed" in proxy.events
        await eventually(proxy.is_at_rest)
        await proxy.becomes(engine, "up")  # it is not to blame


async def test_a_client_that_reads_nothing_is_cut_off(tmp_path: Path) -> None:
    async def talks(socket: ServerConnection) -> None:
        while True:
            await socket.send(b"x" * 1_000_000)

    settings = {"CLIENT_WRITE_STALL_SECONDS": "0.5"}
    async with WebSocketEngine(talks, compression=None) as engine, program(tmp_path, engine, **settings) as proxy:
        client = await websocket(proxy, max_queue=1)
        await eventually(lambda: [code for code, _ in engine.closes] == [1006])
        await eventually(proxy.is_at_rest)
        client.transport.abort()
        await eventually(lambda: outcomes(proxy) == ["client_left"])


async def test_a_stop_gives_websockets_time_and_then_closes_them(tmp_path: Path) -> None:
    async with WebSocketEngine() as engine, program(tmp_path, engine, DRAIN_TIMEOUT_SECONDS="2") as proxy:
        async with websocket(proxy) as short, websocket(proxy) as long:
            proxy.signal(signal.SIGTERM)
            await eventually(lambda: "stopping" in proxy.events)
            for client in (short, long):
                await client.send("still open")
                assert await client.recv() == "still open"
            await short.close(1000, "in time")
            async with asyncio.timeout(30):
                with pytest.raises(ConnectionClosedError) as closed:
                    await long.recv()
            assert closed.value.rcvd is None
        assert await proxy.ended() == 0
        assert outcomes(proxy) == ["broken", "complete"]
        await eventually(lambda: sorted(code or 0 for code, _ in engine.closes) == [1000, 1006])


async def test_a_stop_does_not_wait_for_websockets_that_have_ended(tmp_path: Path) -> None:
    async with WebSocketEngine() as engine, program(tmp_path, engine, DRAIN_TIMEOUT_SECONDS=LONG) as proxy:
        async with websocket(proxy) as client:
            proxy.signal(signal.SIGTERM)
            await eventually(lambda: "stopping" in proxy.events)
            await client.close()
        assert await proxy.ended() == 0


async def test_a_drained_backend_keeps_its_websockets_and_gets_no_new_ones(tmp_path: Path) -> None:
    async with WebSocketEngine() as one, WebSocketEngine() as two:
        async with program(tmp_path, one, two, ADMIN_KEY=ADMIN) as proxy:
            async with websocket(proxy) as client:
                [home] = [engine for engine in (one, two) if engine.sockets]
                name = home.url.removeprefix("http://")
                bearer = {"Authorization": f"Bearer {ADMIN}"}
                path = f"/admin/backends/{name}/drain?move=1"
                drained = await send(proxy.url, path, method="POST", headers=bearer)
                assert (drained.status, drained.json["safe_to_stop"]) == (200, False)
                for _ in range(3):
                    async with websocket(proxy):
                        pass
                assert len(home.sockets) == 1
                await client.send("still open")
                assert await client.recv() == "still open"


async def test_an_engine_that_goes_away_closes_with_its_own_code(tmp_path: Path) -> None:
    engine = WebSocketEngine()
    async with engine, program(tmp_path, engine) as proxy:
        async with websocket(proxy) as client:
            await engine.stop()
            with pytest.raises(ConnectionClosedOK) as closed:
                await client.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 1001
