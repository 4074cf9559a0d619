"""The doctor examines the backends that DNS names stand for, and finds names that stand for none."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import dns.rcode
import pytest

from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.doctor.discovery_checks import find_backends
from support.dns_server import DnsServer


@pytest.fixture
async def server() -> AsyncIterator[DnsServer]:
    async with DnsServer() as server:
        yield server


async def found(*urls: str) -> tuple[list[str], list[str]]:
    """The URLs of the backends, and the codes of the findings."""
    entries = [BackendConfig(url, url) for url in urls]
    backends, findings = await asyncio.to_thread(find_backends, entries)
    return [one.url for one in backends], [one.code for one in findings]


async def test_each_record_is_a_backend_until_there_are_none(server: DnsServer) -> None:
    url = f"dns+http://engines.test:8080?server={server.address}"
    server.records["engines.test.", "A"] = ["10.0.0.1", "10.0.0.2"]
    assert await found(url) == (["http://10.0.0.1:8080", "http://10.0.0.2:8080"], [])

    server.records.clear()
    assert await found(url) == ([], ["discovery_no_records"])


async def test_a_name_server_that_fails_is_an_error_until_it_works(server: DnsServer) -> None:
    url = f"dns+http://engines.test:8080?server={server.address}"
    server.records["engines.test.", "A"] = ["10.0.0.1"]
    server.rcode = dns.rcode.SERVFAIL
    assert await found(url) == ([], ["discovery_no_answer"])

    server.rcode = None
    assert await found(url) == (["http://10.0.0.1:8080"], [])


async def test_multicast_names_are_left_out() -> None:
    assert await found("mdns+http://_inference._tcp") == ([], [])
