"""Who may open a WebSocket, and what happens when none opens."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from support.program import program
from support.waiting import eventually
from support.websocket_engine import WebSocketEngine, websocket

ALICE, BOB, ENGINE = (f"sk-{name}-0123456789abcdef" for name in ("alice", "bob", "engine"))
KEYS = {"API_KEYS": f"alice:{ALICE}"}
AS_BROWSERS_DO = [Subprotocol("realtime"), Subprotocol(f"openai-insecure-api-key.{ALICE}"), Subprotocol("beta")]
LIMITED = f"""\
keys:
  - {{name: alice, secret: {ALICE}, models: [m], concurrent_requests: 1}}
  - {{name: bob, secret: {BOB}}}
"""


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def refusal(opening: connect) -> tuple[int, bytes]:
    """Status and body of the reply to a handshake that fails."""
    with pytest.raises(InvalidStatus) as refused:
        await opening
    response = refused.value.response
    assert response.headers["connection"] == "close"
    return response.status_code, bytes(response.body or b"")


@pytest.mark.parametrize(
    "fields", [{}, bearer("wrong"), {"x-api-key": "wrong"}, {"Sec-WebSocket-Protocol": "openai-insecure-api-key.wrong"}]
)
async def test_without_a_valid_key_no_engine_sees_the_handshake(tmp_path: Path, fields: dict[str, str]) -> None:
    async with WebSocketEngine() as engine, program(tmp_path, engine, **KEYS) as proxy:
        status, body = await refusal(websocket(proxy, additional_headers=fields))

        assert (status, b"invalid_api_key" in body) == (401, True)
        assert engine.handshakes == []


@pytest.mark.parametrize("fields", [bearer(ALICE), {"x-api-key": ALICE}, {"api-key": ALICE}])
async def test_a_key_opens_a_websocket_and_no_engine_sees_it(tmp_path: Path, fields: dict[str, str]) -> None:
    async with WebSocketEngine() as engine, program(tmp_path, engine, **KEYS) as proxy:
        async with websocket(proxy, additional_headers=fields) as client:
            await client.send("hello")
            assert await client.recv() == "hello"

        assert ALICE not in str(engine.handshakes[0].headers)


async def test_a_key_among_the_subprotocols_opens_a_websocket_and_no_engine_sees_it(tmp_path: Path) -> None:
    async with WebSocketEngine(subprotocols=["realtime"]) as engine, program(tmp_path, engine, **KEYS) as proxy:
        async with websocket(proxy, subprotocols=AS_BROWSERS_DO) as client:
            assert client.subprotocol == "realtime"

        assert ALICE not in str(engine.handshakes[0].headers)
        assert engine.handshakes[0].headers["Sec-WebSocket-Protocol"] == "realtime, beta"


async def test_a_key_among_the_subprotocols_also_works_with_engines_that_select_none(tmp_path: Path) -> None:
    """As vLLM does; Chromium would give the WebSocket up."""
    async with WebSocketEngine() as engine, program(tmp_path, engine, **KEYS) as proxy:
        async with websocket(proxy, subprotocols=AS_BROWSERS_DO) as client:
            assert client.subprotocol == "realtime"
        async with websocket(proxy, subprotocols=AS_BROWSERS_DO[1:2]) as client:
            assert client.subprotocol is None
        fields = bearer(ALICE)
        async with websocket(proxy, subprotocols=AS_BROWSERS_DO[:1], additional_headers=fields) as client:
            assert client.subprotocol is None  # the engine's word


@pytest.mark.parametrize("settings", [{}, KEYS | {"FORWARD_CLIENT_KEY": "true"}])
async def test_a_key_among_the_subprotocols_is_a_bearer_for_engines(tmp_path: Path, settings: dict[str, str]) -> None:
    async with WebSocketEngine(subprotocols=["beta"]) as engine, program(tmp_path, engine, **settings) as proxy:
        async with websocket(proxy, subprotocols=AS_BROWSERS_DO):
            pass

        assert engine.handshakes[0].headers["Authorization"] == f"Bearer {ALICE}"
        assert engine.handshakes[0].headers["Sec-WebSocket-Protocol"] == "realtime, beta"


async def test_the_key_of_the_backend_replaces_that_of_the_client(tmp_path: Path) -> None:
    settings = KEYS | {"BACKEND_API_KEY": ENGINE}
    async with WebSocketEngine() as engine, program(tmp_path, engine, **settings) as proxy:
        async with websocket(proxy, additional_headers=bearer(ALICE)):
            pass

        assert engine.handshakes[0].headers.get_all("Authorization") == [f"Bearer {ENGINE}"]


async def test_an_open_websocket_is_a_request_in_progress_of_its_key(tmp_path: Path) -> None:
    (tmp_path / "keys.yaml").write_text(LIMITED)
    async with WebSocketEngine() as engine, program(tmp_path, engine, API_KEYS_FILE="keys.yaml") as proxy:
        fields = bearer(ALICE)
        async with websocket(proxy, additional_headers=fields):
            status, body = await refusal(websocket(proxy, additional_headers=fields))
            assert (status, b"rate_limit_exceeded" in body) == (429, True)
            async with websocket(proxy, additional_headers=bearer(BOB)):
                pass
        await eventually(proxy.is_at_rest)
        async with websocket(proxy, additional_headers=fields):
            pass


@pytest.mark.parametrize("path", ["/v1/realtime", "/v1/realtime?model=other", "/v1/realtime?model=m&model=other"])
async def test_a_key_that_is_limited_to_models_must_name_one_of_them(tmp_path: Path, path: str) -> None:
    (tmp_path / "keys.yaml").write_text(LIMITED)
    async with WebSocketEngine() as engine, program(tmp_path, engine, API_KEYS_FILE="keys.yaml") as proxy:
        status, body = await refusal(websocket(proxy, path, additional_headers=bearer(ALICE)))

        assert (status, b"model_not_permitted" in body, engine.handshakes) == (403, True, [])


async def test_a_limited_key_gets_no_websocket_on_a_backend_that_serves_other_models_too(tmp_path: Path) -> None:
    (tmp_path / "keys.yaml").write_text(LIMITED)
    (tmp_path / "fleet.yaml").write_text("")
    async with WebSocketEngine() as engine:
        (tmp_path / "fleet.yaml").write_text(f"backends: [{{url: '{engine.url}', models: [m, secret]}}]\n")
        settings = {"API_KEYS_FILE": "keys.yaml", "CONFIG_FILE": "fleet.yaml", "BACKENDS": ""}
        async with program(tmp_path, **settings) as proxy:
            status, body = await refusal(websocket(proxy, additional_headers=bearer(ALICE)))
            assert (status, b"does not read the messages" in body, engine.handshakes) == (403, True, [])
            async with websocket(proxy, additional_headers=bearer(BOB)):
                pass


@pytest.mark.parametrize("status", [400, 403, 404, 410])
async def test_a_refusal_by_the_engine_is_an_ordinary_reply(tmp_path: Path, status: int) -> None:
    async with WebSocketEngine(refusal=(status, "the engine's own words")) as engine:
        async with program(tmp_path, engine) as proxy:
            assert await refusal(websocket(proxy)) == (status, b"the engine's own words")
            await eventually(proxy.is_at_rest)
            await eventually(lambda: [line.status for line in proxy.access_lines] == [status])
            assert await proxy.metric("websockets") == 0


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_an_engine_that_declines_is_not_the_last_one_tried(tmp_path: Path, status: int) -> None:
    async with WebSocketEngine(refusal=(status, "not now")) as one, WebSocketEngine() as two:
        async with program(tmp_path, one, two) as proxy:
            async with websocket(proxy) as first, websocket(proxy) as second:  # the second prefers the idle engine
                for client in (first, second):
                    await client.send("hello")
                    assert await client.recv() == "hello"
            assert one.handshakes
            assert len(two.sockets) == 2


async def test_an_engine_that_cannot_be_reached_is_not_the_last_one_tried(tmp_path: Path) -> None:
    async with WebSocketEngine() as two:
        async with WebSocketEngine() as one, program(tmp_path, one, two, METRICS_CACHE_TTL_SECONDS="3600") as proxy:
            await one.stop()  # no poll shows it
            async with websocket(proxy), websocket(proxy):  # one for each of two equal backends
                assert len(two.sockets) == 2
            assert await proxy.retries("backend_unreachable") == 1


async def test_without_a_backend_the_client_is_told_to_come_back(tmp_path: Path) -> None:
    async with program(tmp_path, "http://127.0.0.1:9") as proxy:
        with pytest.raises(InvalidStatus) as refused:
            await websocket(proxy)
        assert refused.value.response.status_code == 503
        assert refused.value.response.headers["retry-after"]


async def test_a_websocket_waits_in_the_queue_for_a_slot(tmp_path: Path) -> None:
    async with WebSocketEngine() as engine:
        (tmp_path / "fleet.yaml").write_text(f"backends: [{{url: '{engine.url}', capacity: 1}}]\n")
        settings = {"CONFIG_FILE": "fleet.yaml", "BACKENDS": "", "BACKEND_QUEUE_ALLOWANCE": "0"}
        async with program(tmp_path, **settings, QUEUE_UPDATES="true") as proxy:
            first = await websocket(proxy)

            async def opens_and_closes() -> None:
                async with websocket(proxy):
                    pass

            async def one_waits() -> bool:
                return await proxy.metric("queue_requests") == 1

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(opens_and_closes())
                await eventually(one_waits)
                assert len(engine.handshakes) == 1
                await first.close()
            assert len(engine.handshakes) == 2
