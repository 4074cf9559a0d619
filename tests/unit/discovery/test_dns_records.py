"""Questions to a DNS server over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator

import dns.rcode
import pytest

from inference_engine_proxy_server.config.lookups import Lookup
from inference_engine_proxy_server.discovery import dns_records
from inference_engine_proxy_server.discovery.dns_records import DnsAnswer, DnsFailure, DnsRecord, NothingFound, look_up
from support.dns_server import DnsServer


@pytest.fixture
async def server() -> AsyncIterator[DnsServer]:
    async with DnsServer(ttl=7) as server:
        yield server


async def asked(server: DnsServer, url: str) -> DnsAnswer:
    return await look_up(Lookup.of(f"{url}?server={server.address}"))


async def test_all_ipv4_addresses_in_a_stable_order(server: DnsServer) -> None:
    server.records["engines.test.", "A"] = ["10.0.0.2", "10.0.0.10", "10.0.0.1"]
    found = await asked(server, "dns+http://engines.test:8080")
    assert found.ttl_seconds == 7
    assert [record.address for record in found.records] == sorted(["10.0.0.1", "10.0.0.10", "10.0.0.2"])
    assert found.records[0] == DnsRecord("10.0.0.1", None, "engines.test")


async def test_ipv6_addresses_count_only_without_ipv4_addresses(server: DnsServer) -> None:
    server.records["engines.test.", "AAAA"] = ["fd00::1", "fd00::2"]
    found = await asked(server, "dns+http://engines.test:8080")
    assert [record.address for record in found.records] == ["fd00::1", "fd00::2"]

    server.records["engines.test.", "A"] = ["10.0.0.1"]
    found = await asked(server, "dns+http://engines.test:8080")
    assert [record.address for record in found.records] == ["10.0.0.1"]


@pytest.mark.parametrize("short", ["engines.test.", "llm.test."])
async def test_answer_lasts_as_long_as_the_shortest_record_on_the_way(server: DnsServer, short: str) -> None:
    server.records |= {("engines.test.", "CNAME"): ["llm.test."], ("llm.test.", "A"): ["10.0.0.1"]}
    server.ttls[short] = 3
    found = await asked(server, "dns+http://engines.test:8080")
    assert (found.ttl_seconds, [record.address for record in found.records]) == (3, ["10.0.0.1"])


async def test_addresses_of_services_come_with_the_answer_or_are_asked_for(server: DnsServer) -> None:
    server.records |= {
        ("_a._tcp.test.", "SRV"): ["10 5 8081 one.test.", "20 0 8082 two.test.", "20 0 8083 none.test.", "1 1 1 ."],
        ("one.test.", "A"): ["10.0.0.1"],
        ("two.test.", "AAAA"): ["fd00::2"],
    }
    expected = (DnsRecord("10.0.0.1", 8081, "one.test", 10, 5), DnsRecord("fd00::2", 8082, "two.test", 20, 0))
    assert (await asked(server, "srv+http://_a._tcp.test")).records == expected
    assert ("one.test.", "A") in server.questions

    server.extra = [("one.test.", "A"), ("two.test.", "AAAA")]
    server.questions.clear()
    assert (await asked(server, "srv+http://_a._tcp.test")).records == expected
    assert ("one.test.", "A") not in server.questions


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("dns+http://missing.test", "the name does not exist"),
        ("dns+http://empty.test", "the name has no addresses"),
        ("srv+http://empty.test", "the name has no SRV records that lead to an address"),
        ("srv+http://nowhere.test", "the name has no SRV records that lead to an address"),
    ],
)
async def test_nothing_found(server: DnsServer, url: str, reason: str) -> None:
    server.records |= {("empty.test.", "TXT"): ["nothing"], ("nowhere.test.", "SRV"): ["0 0 1 ."]}
    with pytest.raises(NothingFound, match=rf"^{reason}$"):
        await asked(server, url)


async def test_name_server_with_an_error(server: DnsServer) -> None:
    server.rcode = dns.rcode.SERVFAIL
    with pytest.raises(DnsFailure, match=r"^the name server reports an error$"):
        await asked(server, "dns+http://engines.test")


async def test_silent_name_server(server: DnsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_records, "_SECONDS", 0.2)
    server.is_silent = True
    with pytest.raises(DnsFailure, match=r"^the name server does not answer$"):
        await asked(server, "dns+http://engines.test")
    assert server.questions


async def test_service_is_unknown_while_the_address_of_a_target_is(
    server: DnsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Forgetful(DnsServer):
        def datagram_received(self, data: bytes, addr: object) -> None:
            self.is_silent = b"\x03two" in data
            super().datagram_received(data, addr)

    monkeypatch.setattr(dns_records, "_SECONDS", 0.2)
    async with Forgetful() as forgetful:
        forgetful.records |= {
            ("a.test.", "SRV"): ["0 0 1 one.test.", "0 0 2 two.test."],
            ("one.test.", "A"): ["10.0.0.1"],
        }
        with pytest.raises(DnsFailure, match=r"^the name server does not answer$"):
            await asked(forgetful, "srv+http://a.test")


async def test_name_server_that_does_not_exist() -> None:
    with pytest.raises(DnsFailure, match=r"^the name server cannot be asked: "):
        await look_up(Lookup.of("dns+http://engines.test?server=nowhere.invalid"))
