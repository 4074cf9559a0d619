"""Headers that engines get about keys, clients and forwarding, and the detection of loops."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest

from end_to_end.conftest import StartProxy, StartServers
from end_to_end.recording import RecordingEngine
from support.http_client import chat, send
from support.program import Proxy
from support.waiting import eventually

CHAT = "/v1/chat/completions"
ALICE = "sk-alice-0123456789abcdef"
KEYS = {"API_KEYS": f"alice:{ALICE}"}
ENGINES_KEY = "sk-engine-0123456789abcdef"
GIVEN = {"Authorization": f"Bearer {ALICE}", "X-Api-Key": "other", "Proxy-Authorization": "Basic YTpi"}


def fields_of(request: bytes, *names: str) -> dict[str, str]:
    """The named fields as the engine received them, each exactly once."""
    lines = request.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]
    found = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    picked = [(name, value) for name, value in found if name in names]
    assert len(dict(picked)) == len(picked)
    return dict(picked)


# --- keys


@pytest.mark.parametrize(
    ("settings", "got"),
    [
        pytest.param({}, {"authorization": f"Bearer {ALICE}", "x-api-key": "other"}, id="no keys: as it came"),
        pytest.param(KEYS, {}, id="keys: the client's is ours"),
        pytest.param(
            {**KEYS, "FORWARD_CLIENT_KEY": "1"},
            {"authorization": f"Bearer {ALICE}", "x-api-key": "other"},
            id="keys, and the client's goes on",
        ),
        pytest.param({"BACKEND_API_KEY": ENGINES_KEY}, {"authorization": f"Bearer {ENGINES_KEY}"}, id="engine's"),
        pytest.param(
            {**KEYS, "BACKEND_API_KEY": ENGINES_KEY, "FORWARD_CLIENT_KEY": "1"},
            {"authorization": f"Bearer {ENGINES_KEY}"},
            id="the engine's goes before the client's",
        ),
    ],
)
async def test_engine_gets_its_own_key(start_proxy: StartProxy, settings: dict[str, str], got: dict[str, str]) -> None:
    async with RecordingEngine() as engine:
        proxy = await asyncio.to_thread(start_proxy, engine.url, **settings)
        assert (await send(proxy.url, CHAT, chat(), headers=GIVEN)).status == 200

        [request] = engine.forwarded
        assert fields_of(request, "authorization", "x-api-key", "proxy-authorization") == got
        own = {"authorization": f"Bearer {ENGINES_KEY}"} if "BACKEND_API_KEY" in settings else {}
        assert engine.polls
        for poll in engine.polls:
            assert fields_of(poll, "authorization", "x-api-key") == own


async def test_without_keys_authorization_is_forwarded_unchanged(start_proxy: StartProxy) -> None:
    given = ["Basic YTpi", "bearer  x", "Digest a=b, c=d", "Bearer \xe9"]
    async with RecordingEngine() as engine:
        proxy = await asyncio.to_thread(start_proxy, engine.url)
        for authorization in given:
            await send(proxy.url, CHAT, chat(), headers={"Authorization": authorization})

        got = [fields_of(request, "authorization")["authorization"] for request in engine.forwarded]
        assert got == [authorization.encode().decode("latin-1") for authorization in given]


async def test_engine_with_a_configured_key_is_polled_and_used(
    start_servers: StartServers, start_proxy: StartProxy, tiny_model: Path
) -> None:
    [server] = start_servers(1, tiny_model, "--api-key", ENGINES_KEY)
    assert server.status("/metrics") == 401
    proxy = start_proxy(server, BACKEND_API_KEY=ENGINES_KEY, METRICS_CACHE_TTL_SECONDS="0.1", **KEYS)
    health = (await proxy.details())[server.url]

    assert health["ready"]
    assert "llamacpp:tokens_predicted_total" in health["metrics"]
    assert (await send(proxy.url, CHAT, chat(), headers={"X-Api-Key": ALICE})).json["choices"]
    assert (await send(proxy.url, CHAT, chat())).status == 401


async def test_engine_with_an_unconfigured_key_answers_401_itself(
    start_servers: StartServers, start_proxy: StartProxy, tiny_model: Path
) -> None:
    [server] = start_servers(1, tiny_model, "--api-key", ENGINES_KEY)
    proxy = start_proxy(server)

    [backend] = (await send(proxy.url, "/dashboard/snapshot")).json["backends"]
    assert backend["engine"] == "llamacpp"  # recognized without its list of models
    refused = await send(proxy.url, CHAT, chat())
    assert (refused.status, refused.headers["x-backend"]) == (401, server.url)
    assert (await send(proxy.url, CHAT, chat(), headers={"Authorization": f"Bearer {ENGINES_KEY}"})).status == 200


# --- forwarding headers

SPOOFED = {
    "X-Forwarded-For": "203.0.113.9",
    "X-Forwarded-Proto": "https",
    "X-Forwarded-Host": "bank.example",
    "X-Real-IP": "203.0.113.9",
    "Forwarded": "for=203.0.113.9",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
}
WAY = ("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-real-ip", "forwarded", "traceparent")


async def test_forwarding_headers_of_an_untrusted_client_are_replaced(tmp_path: Path) -> None:
    async with RecordingEngine() as engine:
        with await asyncio.to_thread(Proxy, tmp_path, [engine.url]) as proxy:
            await send(proxy.url, "/x", headers=SPOOFED)
            await eventually(lambda: len(proxy.access_lines) == 1)

            assert fields_of(engine.forwarded[0], *WAY) == {
                "x-forwarded-for": "127.0.0.1",
                "x-forwarded-proto": "http",
                "x-forwarded-host": proxy.url.removeprefix("http://"),
                "traceparent": SPOOFED["traceparent"],
            }
    assert clients_in(tmp_path) == [""]


async def test_forwarding_headers_of_a_trusted_proxy_are_extended_and_logged(tmp_path: Path) -> None:
    values = ["203.0.113.9", "6.6.6.6, 203.0.113.9, 10.0.0.1", "[2001:db8::1]:443", 'x" 200', "127.0.0.1", ""]
    async with RecordingEngine() as engine:
        with await asyncio.to_thread(Proxy, tmp_path, [engine.url], TRUSTED_PROXIES="private") as proxy:
            for value in values:
                await send(proxy.url, "/x", headers=SPOOFED | {"X-Forwarded-For": value})
            await eventually(lambda: len(proxy.access_lines) == len(values))

        assert fields_of(engine.forwarded[0], *WAY) == {
            **{name.lower(): value for name, value in SPOOFED.items()},
            "x-forwarded-for": "203.0.113.9, 127.0.0.1",
        }
    assert clients_in(tmp_path) == ["203.0.113.9", "203.0.113.9", "2001:db8::1", "", "", ""]


async def test_proxy_that_is_its_own_backend_reports_a_loop(start_proxy: StartProxy, free_port: int) -> None:
    proxy = start_proxy(f"http://127.0.0.1:{free_port}", PORT=str(free_port), METRICS_CACHE_TTL_SECONDS="0.1")

    async def says_so() -> bool:
        [detail] = (await send(proxy.url, "/health")).json["details"]
        return str(detail["reason"]).startswith("it is this proxy itself")

    await eventually(says_so)
    reply = await send(proxy.url, CHAT, chat())
    assert (reply.status, reply.json["error"]["code"]) == (503, "no_backend_available")


async def test_two_proxies_in_a_row_are_not_a_loop(start_proxy: StartProxy) -> None:
    async with RecordingEngine() as engine:
        inner = await asyncio.to_thread(start_proxy, engine.url)
        outer = await asyncio.to_thread(start_proxy, inner.url)

        assert json.loads((await send(outer.url, "/x")).body)["data"]
        via = fields_of(engine.forwarded[0], "via")["via"]
        assert re.fullmatch(r"1\.1 inference-proxy-\w+, 1\.1 inference-proxy-\w+", via)


def clients_in(folder: Path) -> list[str]:
    """The client address in the access log of the program in ``folder``; empty for the peer itself."""
    found = [line.split(" ")[1] for line in (folder / "stdout").read_text().splitlines()]
    return ["" if client.startswith("127.0.0.1:") else client for client in found]
