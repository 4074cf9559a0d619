"""WebSockets pass through NGINX, and no other upgrade does."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

from end_to_end.conftest import StartProxy
from nginx.conftest import PATIENT, StartNginx
from nginx.server import configure
from support.waiting import eventually
from support.websocket_engine import PATH, WebSocketEngine


async def test_websockets_pass_and_other_upgrades_do_not(
    start_nginx: StartNginx, start_proxy: StartProxy, certificates: Path, secure: bool
) -> None:
    async with WebSocketEngine(subprotocols=["realtime"]) as engine:
        proxy = await asyncio.to_thread(start_proxy, engine.url, **PATIENT, TRUSTED_PROXIES="private")
        nginx = start_nginx(proxy.url)
        trusting = ssl.create_default_context(cafile=certificates / "fullchain.pem") if secure else None
        url = (nginx.https_url if secure else nginx.url).replace("http", "ws", 1)
        offered = [Subprotocol("realtime")]
        async with connect(f"{url}{PATH}", ssl=trusting, subprotocols=offered, proxy=None) as client:
            assert client.subprotocol == "realtime"
            for size in (1, 1_000_000):
                await client.send("x" * size)
                assert await client.recv() == "x" * size
            await client.close(4001, "by the client")
        await eventually(lambda: engine.closes == [(4001, "by the client")])
        assert engine.handshakes[0].headers["x-forwarded-proto"] == ("https" if secure else "http")

        h2c = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAMAAABkAARAAAAAAAIAAAAA"}
        assert (await nginx.send("/health", secure=secure, headers=h2c)).status == 200
        unknown = await nginx.send("/health", secure=secure, headers={"Connection": "Upgrade", "Upgrade": "spdy/3"})
        assert unknown.status == 200  # the proxy would refuse it


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, 691),
        ({"WEBSOCKET_IDLE_TIMEOUT_SECONDS": "3600"}, 3661),
        ({"WEBSOCKET_IDLE_TIMEOUT_SECONDS": "0"}, 86_461),
        ({"WEBSOCKET_IDLE_TIMEOUT_SECONDS": "3600", "BACKEND_TIMEOUT_SECONDS": "5000.5"}, 10_092),
    ],
)
def test_nginx_waits_longer_than_the_proxy(tmp_path: Path, variables: dict[str, str], seconds: int) -> None:
    configure(tmp_path, "http://127.0.0.1:9", certificates=None, dns=None, **variables)

    assert f"proxy_read_timeout {seconds}s;" in (tmp_path / "conf.d" / "proxy.locations").read_text()
