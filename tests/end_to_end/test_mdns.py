"""Engines in the local network are found by multicast DNS, here on the loopback interface.

The suite `discovery` has more of this.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from support.engine import Engine, answers_with
from support.fakes.engine import http_reply
from support.live_proxy import live_proxy

LOOPBACK = "127.0.0.1"


def own_service_type() -> str:
    """Of one test alone: all tests of a machine share the loopback interface."""
    return f"_t{secrets.token_hex(6)}._tcp"


def url_of(service_type: str) -> str:
    return f"mdns+http://{service_type}?interface={LOOPBACK}"


def service(service_type: str, engine_port: int, *, instance: str = "pc", **told: str) -> AsyncServiceInfo:
    return AsyncServiceInfo(
        f"{service_type}.local.",
        f"{instance}.{service_type}.local.",
        addresses=[socket.inet_aton(LOOPBACK)],
        port=engine_port,
        properties=told,
        server=f"{instance}-{engine_port}.local.",
    )


@asynccontextmanager
async def published(info: AsyncServiceInfo) -> AsyncIterator[AsyncZeroconf]:
    """Until the end of the block, which is a goodbye."""
    zeroconf = AsyncZeroconf(interfaces=[LOOPBACK])
    try:
        await (await zeroconf.async_register_service(info))
        yield zeroconf
    finally:
        await zeroconf.async_unregister_all_services()
        await zeroconf.async_close()


async def test_a_proxy_waits_at_its_start_for_engines_that_are_there() -> None:
    service_type = own_service_type()
    async with Engine(answers_with(http_reply())) as engine, published(service(service_type, engine.port)):
        async with live_proxy(url_of(service_type), refresh_seconds=0.5) as proxy:
            assert (await proxy.post()).status == 200
