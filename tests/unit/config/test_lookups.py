"""URLs of DNS names are checked as strictly as base URLs, and each mistake is explained."""

from __future__ import annotations

from pathlib import Path

import pytest

from inference_engine_proxy_server.config.base_urls import as_backend_url, distinct_backend_urls, name_of
from inference_engine_proxy_server.config.lookups import Lookup, NameServer
from inference_engine_proxy_server.config.sources import LoadedSettings, load_settings


@pytest.mark.parametrize(
    ("written", "normal", "lookup"),
    [
        ("dns+http://Engines:8080/", "dns+http://engines:8080", Lookup("dns", "http", "engines", 8080, "", None)),
        ("DNS+HTTPS://a.b./x/", "dns+https://a.b./x", Lookup("dns", "https", "a.b.", 443, "/x", None)),
        ("dns+http://a", "dns+http://a", Lookup("dns", "http", "a", 80, "", None)),
        (
            "srv+http://_llama._tcp.service.consul?server=127.0.0.1:8600",
            "srv+http://_llama._tcp.service.consul?server=127.0.0.1:8600",
            Lookup("srv", "http", "_llama._tcp.service.consul", None, "", NameServer("127.0.0.1", 8600)),
        ),
        (
            "dns+http://a:1?server=[::1]",
            "dns+http://a:1?server=[::1]",
            Lookup("dns", "http", "a", 1, "", NameServer("::1", 53)),
        ),
        (
            "dns+http://a:1/p/?server=Consul",
            "dns+http://a:1/p?server=consul",
            Lookup("dns", "http", "a", 1, "/p", NameServer("consul", 53)),
        ),
    ],
)
def test_urls_are_normalized_and_understood(written: str, normal: str, lookup: Lookup) -> None:
    assert as_backend_url(written) == normal
    assert Lookup.of(normal) == lookup
    assert as_backend_url(normal) == normal


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("dns+ftp://a", r"must begin with dns\+http:// or dns\+https://"),
        ("srv+a", r"must begin with srv\+http:// or srv\+https://"),
        ("dns+http://10.0.0.1:80", r"has an address in place of a name: remove dns\+"),
        ("srv+http://_a._tcp.b:80", "must not have a port, because SRV records state it"),
        ("dns+http://a:0", "must have a port from 1 to 65535"),
        ("dns+http://a:70000", "must have a port from 1 to 65535"),
        ("dns+http://a?ttl=3", r"may end with \?server=ADDRESS:PORT of a name server, but not with another query"),
        ("dns+http://a?server=b:0", r"must name its server as in \?server=10.0.0.2:8600"),
        ("dns+http://a?server=b/c", r"must name its server as in \?server=10.0.0.2:8600"),
        ("dns+http://a b", r"is not a URL like dns\+http://engines:8080"),
        ("srv+http://", r"is not a URL like srv\+http://_engine._tcp.example.com"),
    ],
)
def test_mistakes_are_explained(written: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        as_backend_url(written)


def test_one_name_may_be_asked_of_two_servers_but_not_twice_of_one() -> None:
    distinct_backend_urls(["dns+http://a", "dns+http://a?server=b", "http://a", "srv+http://a"])
    with pytest.raises(ValueError, match="is listed twice"):
        distinct_backend_urls(["dns+http://a", "dns+http://A:80/"])


@pytest.mark.parametrize(
    ("url", "name"),
    [("dns+http://a:8080", "a:8080"), ("srv+http://_a._tcp.b", "_a._tcp.b"), ("dns+https://a", "a:443")],
)
def test_names_for_people(url: str, name: str) -> None:
    assert name_of(url) == name


def loaded(folder: Path, text: str, **environ: str) -> LoadedSettings:
    file = folder / "fleet.yaml"
    file.write_text(text)
    return load_settings(environ | {"CONFIG_FILE": str(file)}, folder / ".env", backends_required=True)


def test_names_are_kept_apart_from_backends_with_base_urls(tmp_path: Path) -> None:
    file = "backends: [{url: 'dns+http://a:8080', weight: 2, tier: 3}, {url: http://b, weight: 5}]"
    configuration = loaded(tmp_path, file).configuration
    assert [(one.url, one.weight) for one in configuration.fleet] == [("http://b", 5)]
    assert [(one.url, one.weight, one.tier) for one in configuration.lookups] == [("dns+http://a:8080", 2, 3)]

    configuration = loaded(tmp_path, file, BACKENDS="dns+http://A:8080", BACKEND_API_KEY="k").configuration
    assert not configuration.fleet
    [lookup] = configuration.lookups
    assert (lookup.weight, lookup.api_key and lookup.api_key.get_secret_value()) == (2, "k")
    assert configuration.with_fleet_of(configuration).lookups == (lookup,)


def test_a_name_with_v1_at_its_end_is_warned_of(tmp_path: Path) -> None:
    warnings = loaded(tmp_path, "{}", BACKENDS="dns+http://a:8080/v1?server=b").warnings
    assert any("ends with /v1" in warning for warning in warnings)
