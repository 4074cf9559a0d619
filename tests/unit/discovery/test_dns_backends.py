"""Each address of a DNS name is a backend with the options of the name."""

from __future__ import annotations

import pytest

from inference_engine_proxy_server.config.base_urls import name_of
from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.config.lookups import Lookup
from inference_engine_proxy_server.discovery.dns_backends import backends_of
from inference_engine_proxy_server.discovery.dns_records import DnsRecord


def backends(url: str, *records: DnsRecord, **options: object) -> list[BackendConfig]:
    entry = BackendConfig(url, **({"name": name_of(url)} | options))  # type: ignore[arg-type]
    return backends_of(Lookup.of(url), entry, records)


def a(address: str) -> DnsRecord:
    return DnsRecord(address, None, "engines.local")


def srv(address: str, priority: int, weight: int, port: int = 8080) -> DnsRecord:
    return DnsRecord(address, port, f"host-{address[-1]}.local", priority, weight)


@pytest.mark.parametrize(
    ("url", "record", "base_url", "name", "host"),
    [
        (
            "dns+http://engines.local:8080/p",
            a("10.0.0.3"),
            "http://10.0.0.3:8080/p",
            "engines-10-0-0-3",
            "engines.local",
        ),
        ("dns+https://engines.local.", a("fd00::3"), "https://[fd00::3]:443", "engines-fd00--3", "engines.local"),
        (
            "srv+http://_llama._tcp.b",
            srv("10.0.0.3", 1, 1, 81),
            "http://10.0.0.3:81",
            "llama-10-0-0-3-81",
            "host-3.local",
        ),
    ],
)
def test_url_name_and_host_of_a_backend(url: str, record: DnsRecord, base_url: str, name: str, host: str) -> None:
    [backend] = backends(url, record)
    assert (backend.url, backend.name, backend.host_name) == (base_url, name, host)


def test_options_of_the_name_are_those_of_each_backend() -> None:
    options = {"name": "gpu", "weight": 3.0, "tier": 2, "engine": "vllm", "models": ("m",), "capacity": 4}
    found = backends("dns+http://engines:8080", a("10.0.0.1"), a("10.0.0.2"), **options)
    assert [backend.name for backend in found] == ["gpu-10-0-0-1", "gpu-10-0-0-2"]
    for backend in found:
        assert (backend.weight, backend.tier, backend.engine, backend.models, backend.capacity) == (
            3,
            2,
            "vllm",
            ("m",),
            4,
        )


def test_name_that_another_backend_has_too_does_not_become_part_of_names() -> None:
    url = "dns+http://engines:8080"  # such a backend is named by its URL
    [backend] = backends(url, a("10.0.0.1"), name=url)
    assert backend.name == "engines-10-0-0-1"


def test_priorities_become_tiers() -> None:
    records = [srv("10.0.0.1", 20, 1), srv("10.0.0.2", 10, 1), srv("10.0.0.3", 20, 1), srv("10.0.0.4", 65_535, 1)]
    assert [one.tier for one in backends("srv+http://_a._tcp.b", *records, tier=2)] == [3, 2, 3, 4]
    assert [one.tier for one in backends("srv+http://_a._tcp.b", *records, tier=99)] == [100, 99, 100, 100]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [([0, 0], [2, 2]), ([1, 1], [2, 2]), ([33, 33], [2, 2]), ([1, 3], [1, 3]), ([0, 10], [0.001, 4])],
    ids=["none", "equal", "equal as Kubernetes states them", "different", "almost nothing for one"],
)
def test_weights_of_one_priority_have_the_weight_of_the_name_as_their_mean(
    weights: list[int], expected: list[float]
) -> None:
    records = [srv(f"10.0.0.{at}", 1, weight) for at, weight in enumerate(weights)]
    others = [srv("10.0.1.1", 2, 60_000)]
    found = backends("srv+http://_a._tcp.b", *records, *others, weight=2)
    assert [one.weight for one in found] == [*expected, 2]


def test_two_services_on_one_host_are_two_backends() -> None:
    found = backends("srv+http://_a._tcp.b", srv("10.0.0.1", 1, 1, 81), srv("10.0.0.1", 1, 1, 82))
    assert [one.name for one in found] == ["a-10-0-0-1-81", "a-10-0-0-1-82"]


def test_record_that_comes_twice_is_one_backend() -> None:
    assert len(backends("srv+http://_a._tcp.b", srv("10.0.0.1", 1, 1), srv("10.0.0.1", 1, 2))) == 1
