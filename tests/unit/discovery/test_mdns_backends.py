"""A service that multicast DNS has found becomes a backend."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from inference_engine_proxy_server.config.added_backends import DescriptionError
from inference_engine_proxy_server.config.base_urls import as_backend_url, name_of
from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.config.service_types import ServiceType
from inference_engine_proxy_server.discovery.mdns_backends import Service, backend_of, in_order

URL = "mdns+http://_inference._tcp"
ENTRY = BackendConfig(URL, name_of(URL))


def backend(entry: BackendConfig = ENTRY, address: str = "192.168.1.5", instance: str = "pc", **told: str) -> Any:
    return backend_of(Service(instance, (address,), 8080, told), address, ServiceType.of(URL), entry)


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("MDNS+HTTP://_Inference._TCP", URL),
        ("mdns+http://_inference._tcp.local.", URL),
        ("mdns+http://_inference._tcp.local/", URL),
        ("mdns+https://_llm._tcp?interface=10.0.0.1", "mdns+https://_llm._tcp?interface=10.0.0.1"),
    ],
)
def test_urls_of_service_types_have_a_normal_form(written: str, normal: str) -> None:
    assert as_backend_url(written) == normal


@pytest.mark.parametrize(
    "written",
    ["mdns+http://inference", "mdns+http://_inference._udp", "mdns+ftp://_a._tcp", f"mdns+http://_{'a' * 16}._tcp",
     "mdns+http://_a._tcp:80", "mdns+http://_a._tcp?interface=10.0.0.999"],
)  # fmt: skip
def test_other_urls_are_rejected_with_an_example(written: str) -> None:
    with pytest.raises(ValueError, match=re.escape("interface=192.168.1.5")):
        as_backend_url(written)


def test_a_service_tells_its_path_name_tier_weight_and_models() -> None:
    told = backend(path="/engine/", name="gpu-1", tier="2", weight="0.5", models="m, n")
    assert (told.url, told.name) == ("http://192.168.1.5:8080/engine", "gpu-1")
    assert (told.tier, told.weight, told.models) == (2, 0.5, ("m", "n"))


def test_a_service_that_tells_nothing_has_the_name_of_its_instance() -> None:
    assert backend(instance="Ann's PC (2)").name == "Ann-s-PC-2"
    assert backend(instance="日本").name == "engine"


def test_a_service_may_state_its_scheme_and_may_have_an_ipv6_address() -> None:
    assert backend(scheme="https", address="fd00::1").url == "https://[fd00::1]:8080"


def test_what_the_operator_says_of_all_backends_overrides_what_a_service_says() -> None:
    entry = replace(ENTRY, tier=3, weight=2, models=("x",), engine="vllm")
    told = backend(entry, tier="2", weight="9", models="m")
    assert (told.tier, told.weight, told.models, told.engine) == (3, 2, ("x",), "vllm")


@pytest.mark.parametrize(
    ("told", "problem"),
    [
        ({"tier": "high"}, "tier: must be a whole number from 1 to 100"),
        ({"weight": "-1"}, "weight: must be a number above 0"),
        ({"name": "two words"}, "name: must be up to 64 letters"),
        ({"scheme": "ftp"}, "must begin with http:// or https://"),
        ({"path": "/a?b"}, "must not have a query"),
    ],
)
def test_a_wrong_description_is_explained(told: dict[str, str], problem: str) -> None:
    with pytest.raises(DescriptionError, match=re.escape(problem)):
        backend(**told)  # type: ignore[arg-type]  # none of them is ``entry``


def test_addresses_that_need_no_scope_come_in_a_fixed_order() -> None:
    given = ["fe80::1", "fd00::2", "169.254.7.7", "192.168.1.9", "10.0.0.3", "::"]
    assert in_order(given) == ("10.0.0.3", "192.168.1.9", "fd00::2", "169.254.7.7")
