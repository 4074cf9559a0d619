"""NGINX finds the proxy again after its container got another address."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from nginx.dns import DnsServer
from nginx.server import CAN_RESOLVE_AGAIN, Nginx
from support.fakes.engine import FakeEngine, answering, http_reply
from support.waiting import eventually


@pytest.mark.skipif(not CAN_RESOLVE_AGAIN, reason="needs NGINX 1.27.3, as the image has")
async def test_a_proxy_with_a_new_address_is_found_within_seconds(tmp_path: Path) -> None:
    async with DnsServer("127.0.0.1") as dns, FakeEngine(answering(http_reply(b"the proxy"))) as proxy:
        nginx = await asyncio.to_thread(Nginx, tmp_path, proxy.url, dns=dns.port)
        with nginx:

            async def answers(status: int) -> bool:
                return (await nginx.send("/livez")).status == status

            await eventually(lambda: answers(200))
            dns.address = "127.0.0.9"  # nobody is there
            await eventually(lambda: answers(502))
            dns.address = "127.0.0.1"
            await eventually(lambda: answers(200))
