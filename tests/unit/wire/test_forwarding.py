"""Forwarding fields sent to backends, the client address in the access log, and which proxies are trusted."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.config.sources import SettingsError, load_settings
from inference_engine_proxy_server.errors import ClientError
from inference_engine_proxy_server.wire.forwarding import Forwarding, peer_of
from inference_engine_proxy_server.wire.request_head import HeadLimits, RequestHead, parse_request_head

LIMITS = HeadLimits(line_bytes=8192, total_bytes=32_768, field_count=100)
PEER = "10.0.0.7"
PRIVATE = (ip_network("10.0.0.0/8"), ip_network("fc00::/7"))
SPOOFED = (
    "X-Forwarded-For: 203.0.113.9",
    "X-Forwarded-Proto: https",
    "X-Forwarded-Host: bank.example",
    "X-Real-IP: 203.0.113.9",
    "Forwarded: for=203.0.113.9;proto=https",
)


def head_of(*lines: str, version: str = "1.1") -> RequestHead:
    section = "".join(f"{line}\r\n" for line in (f"GET /v1 HTTP/{version}", "Host: proxy:8888", *lines))
    return parse_request_head(section.encode("latin-1"), LIMITS)


def forwarding(*trusted: IPv4Network | IPv6Network, is_tls: bool = False) -> Forwarding:
    return Forwarding(trusted, name="this-proxy", is_tls=is_tls)


def sent_fields(head: RequestHead, *, is_trusted: bool, peer: str = PEER, is_tls: bool = False) -> dict[str, str]:
    """The forwarding fields sent to a backend; asserts that none is repeated."""
    lines = forwarding(is_tls=is_tls).describe(head, peer, is_trusted=is_trusted).decode("latin-1").split("\r\n")
    assert lines.pop() == ""
    fields = dict(line.split(": ", 1) for line in lines)
    assert len(fields) == len(lines)
    return fields


def client_of(*lines: str, trusted: tuple[IPv4Network | IPv6Network, ...] = PRIVATE) -> str | None:
    return forwarding(*trusted).client_of(head_of(*lines))


# --- to backends


def test_forwarding_fields_of_an_untrusted_peer_are_replaced() -> None:
    assert sent_fields(head_of(*SPOOFED), is_trusted=False) == {
        "x-forwarded-for": PEER,
        "x-forwarded-proto": "http",
        "x-forwarded-host": "proxy:8888",
        "via": "1.1 this-proxy",
    }


def test_forwarding_fields_of_an_untrusted_peer_are_dropped_in_any_letter_case() -> None:
    head = head_of(*(line.upper() for line in SPOOFED), "x-forwarded-for: 198.51.100.1")

    assert b"203.0.113.9" not in head.passed_on
    assert "203.0.113.9" not in str(sent_fields(head, is_trusted=False))
    assert head.passed_on == b""


def test_forwarding_fields_of_a_trusted_proxy_are_extended() -> None:
    assert sent_fields(head_of(*SPOOFED, "Via: 1.0 front"), is_trusted=True) == {
        "x-forwarded-for": f"203.0.113.9, {PEER}",
        "x-forwarded-proto": "https",
        "x-forwarded-host": "bank.example",
        "x-real-ip": "203.0.113.9",
        "forwarded": "for=203.0.113.9;proto=https",
        "via": "1.0 front, 1.1 this-proxy",
    }


def test_fields_missing_from_a_trusted_proxy_are_filled_in_from_the_connection() -> None:
    assert sent_fields(head_of(), is_trusted=True) == sent_fields(head_of(), is_trusted=False)


def test_x_forwarded_for_lines_are_joined_to_one_list() -> None:
    head = head_of("X-Forwarded-For: 203.0.113.9", "x-forwarded-for: 10.0.0.1")

    assert sent_fields(head, is_trusted=True)["x-forwarded-for"] == f"203.0.113.9,10.0.0.1, {PEER}"


def test_protocol_is_https_if_the_proxy_itself_terminates_tls() -> None:
    assert sent_fields(head_of(), is_trusted=False, is_tls=True)["x-forwarded-proto"] == "https"
    assert (
        sent_fields(head_of("X-Forwarded-Proto: http"), is_trusted=False, is_tls=True)["x-forwarded-proto"] == "https"
    )


def test_x_forwarded_host_is_left_out_if_the_client_sends_no_host() -> None:
    head = parse_request_head(b"GET / HTTP/1.0\r\n", LIMITS)

    assert sent_fields(head, is_trusted=False) == {
        "x-forwarded-for": PEER,
        "x-forwarded-proto": "http",
        "via": "1.0 this-proxy",
    }


# --- loops


@pytest.mark.parametrize("via", ["1.1 this-proxy", "1.1 front, 1.1 this-proxy, 1.0 other", "1.1 this-proxy (x)"])
@pytest.mark.parametrize("is_trusted", [True, False])
def test_a_request_that_already_passed_through_this_proxy_gets_508(via: str, *, is_trusted: bool) -> None:
    with pytest.raises(ClientError) as caught:
        forwarding().describe(head_of(f"Via: {via}"), PEER, is_trusted=is_trusted)

    assert (caught.value.status, caught.value.code) == (508, "loop_detected")


def test_passing_through_another_proxy_of_this_kind_is_not_a_loop() -> None:
    assert sent_fields(head_of("Via: 1.1 that-proxy"), is_trusted=False)["via"] == "1.1 that-proxy, 1.1 this-proxy"


# --- the client, for the log


@pytest.mark.parametrize(
    ("value", "client"),
    [
        pytest.param("203.0.113.9", "203.0.113.9", id="one"),
        pytest.param("203.0.113.9, 198.51.100.1", "198.51.100.1", id="last one, as the client may forge the first"),
        pytest.param("203.0.113.9, 10.0.0.1, 10.0.0.2", "203.0.113.9", id="trusted proxies skipped"),
        pytest.param("6.6.6.6, 203.0.113.9, 10.0.0.1", "203.0.113.9", id="stops at the first untrusted address"),
        pytest.param("203.0.113.9:4711", "203.0.113.9", id="port"),
        pytest.param("203.0.113.9, 10.0.0.1:80", "203.0.113.9", id="port of a trusted proxy"),
        pytest.param("2001:db8::1", "2001:db8::1", id="IPv6"),
        pytest.param("[2001:db8::1]", "2001:db8::1", id="IPv6 in brackets"),
        pytest.param("[2001:db8::1]:4711", "2001:db8::1", id="IPv6 with a port"),
        pytest.param("2001:db8::1, fd00::1", "2001:db8::1", id="trusted IPv6"),
        pytest.param("203.0.113.9,,  ,", "203.0.113.9", id="empty items"),
        pytest.param("203.0.113.9, ::ffff:10.0.0.1", "203.0.113.9", id="trusted IPv4 in IPv6"),
        pytest.param("10.0.0.1, 10.0.0.2", None, id="only trusted proxies"),
        pytest.param("", None, id="empty"),
        pytest.param("203.0.113.9, unknown", None, id="unknown to the previous proxy"),
        pytest.param("203.0.113.9, _hidden", None, id="obfuscated by the previous proxy"),
        pytest.param("203.0.113.9, localhost", None, id="host name"),
        pytest.param("203.0.113.9, 1.2.3", None, id="address too short"),
        pytest.param("203.0.113.9, 1.2.3.4.5", None, id="address too long"),
        pytest.param("203.0.113.9, 127.1", None, id="abbreviated"),
        pytest.param('203.0.113.9, "x"', None, id="quoted"),
        pytest.param("203.0.113.9, [::1", "::1", id="unclosed bracket"),
        pytest.param('203.0.113.9, fe80::1%x" 200 complete', None, id="arbitrary text in an IPv6 zone"),
        pytest.param("203.0.113.9, \xb2\xb2.1.1.1", None, id="non-ASCII digits"),
        pytest.param("203.0.113.9, " + "9" * 5000, None, id="very long"),
    ],
)
def test_the_client_is_the_last_address_that_is_not_a_trusted_proxy(value: str, client: str | None) -> None:
    assert client_of(f"X-Forwarded-For: {value}") == client


def test_the_client_is_unknown_without_x_forwarded_for() -> None:
    assert client_of() is None
    assert client_of("X-Real-IP: 203.0.113.9", "Forwarded: for=203.0.113.9") is None


@given(st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=60))
def test_any_field_value_yields_a_valid_address_or_none(value: str) -> None:
    field = re.sub("[\x7f-\x9f]", "", value)

    client = client_of(f"X-Forwarded-For: {field}")

    assert client is None or re.fullmatch(r"[0-9A-Fa-f.:]{2,45}", client)


# --- trusted proxies


@pytest.mark.parametrize(
    ("written", "trusted", "untrusted"),
    [
        ("10.1.2.3", ["10.1.2.3", "::ffff:10.1.2.3"], ["10.1.2.4", "::1"]),
        ("10.0.0.0/8", ["10.255.0.1"], ["11.0.0.1", "127.0.0.1"]),
        ("2001:db8::/32", ["2001:db8:1::1"], ["2001:db9::1"]),
        ("10.0.0.1, 10.0.0.2", ["10.0.0.1", "10.0.0.2"], ["10.0.0.3"]),
        (
            "private",
            ["127.0.0.1", "10.1.1.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "::1", "fd00::1"],
            ["172.32.0.1", "172.15.0.1", "192.169.0.1", "8.8.8.8", "2001:db8::1", "169.254.169.254", "unknown", ""],
        ),
        ("0.0.0.0/0", ["8.8.8.8"], ["::1", "local"]),
    ],
)
def test_trusted_proxies_are_addresses_or_networks_or_all_private_ones(
    written: str, trusted: list[str], untrusted: list[str]
) -> None:
    settings = load_settings({"TRUSTED_PROXIES": written}, Path("/nonexistent/.env")).settings
    found = forwarding(*settings.trusted_proxies)

    assert [address for address in trusted + untrusted if found.trusts(address)] == trusted


def test_no_proxy_is_trusted_by_default() -> None:
    found = forwarding(*Settings().trusted_proxies)

    assert not any(map(found.trusts, ("127.0.0.1", "::1", "10.0.0.1")))


@pytest.mark.parametrize("written", ["localhost", "10.0.0.1/8", "10.0.0.0/33", "10.0.0", "*", "all", "10.0.0.1:80"])
def test_a_value_that_is_no_address_or_network_is_refused(written: str) -> None:
    with pytest.raises(SettingsError, match=r"TRUSTED_PROXIES.*is not an address, a network like 10\.0\.0\.0/8, or"):
        load_settings({"TRUSTED_PROXIES": written}, Path("/nonexistent/.env"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param(("192.0.2.7", 5), ("192.0.2.7", "192.0.2.7:5"), id="IPv4"),
        pytest.param(("2001:db8::1", 5, 0, 0), ("2001:db8::1", "[2001:db8::1]:5"), id="IPv6"),
        pytest.param(("::ffff:192.0.2.7", 5, 0, 0), ("192.0.2.7", "192.0.2.7:5"), id="IPv4 on a socket for both"),
        pytest.param("", ("unknown", "local"), id="Unix socket"),
    ],
)
def test_peer_has_the_same_address_on_every_kind_of_socket(name: object, expected: tuple[str, str]) -> None:
    assert peer_of(name) == expected
