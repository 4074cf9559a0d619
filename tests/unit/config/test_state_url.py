"""STATE_URL and STATE_PREFIX: what is valid, and that passwords never appear."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from inference_engine_proxy_server.config.settings import Settings, as_variable
from inference_engine_proxy_server.config.sources import SettingsError, load_settings

NO_FILE = Path("/nonexistent/.env")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://redis", "redis://redis"),
        ("redis://10.0.0.7:6380/3", "redis://10.0.0.7:6380/3"),
        ("redis://[::1]:6379/0", "redis://[::1]:6379"),
        ("redis://:secret-word@redis:6379", "redis://redis:6379"),
        ("rediss://proxy:secret%2Fword@redis/2", "rediss://redis/2"),
        ("rediss://redis?ssl_ca_certs=/etc/ca.pem", "rediss://redis"),
        ("unix:///run/redis.sock", "unix:///run/redis.sock"),
        ("unix://:secret-word@/run/redis.sock?db=2", "unix:///run/redis.sock"),
    ],
)
def test_valid_urls_are_kept_and_shown_without_passwords(text: str, shown: str) -> None:
    settings = load_settings({"STATE_URL": text}, NO_FILE).settings

    assert settings.state_url is not None
    assert settings.state_url.whole == text
    assert as_variable(settings.state_url) == str(settings.state_url) == shown
    assert "secret" not in repr(settings)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("redis", "must be redis://"),
        ("http://redis", "must be redis://"),
        ("redis://", "it names no server"),
        ("redis://:secret-word@", "it names no server"),
        ("redis://redis:0", "it names no server"),
        ("redis://redis:port", "the port must be from 1 to 65535"),
        ("redis://redis:70000", "the port must be from 1 to 65535"),
        ("redis://redis/cache", "the number of a database only"),
        ("redis://redis/1/2", "the number of a database only"),
        ("redis://redis?timeout=3", "the option 'timeout' is unknown: nothing may follow '?'"),
        ("rediss://redis?ssl_cert_reqs=none", "only ssl_ca_certs, ssl_certfile, ssl_keyfile may follow '?'"),
        ("unix://run/redis.sock", "written with three slashes"),
        ("unix:///run/redis.sock?db=x", "the database must be a number"),
        ("redis://:secret word@redis", "must be redis://"),
    ],
)
def test_an_invalid_url_is_explained_without_its_password(text: str, reason: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({"STATE_URL": text}, NO_FILE)

    assert str(caught.value).startswith("STATE_URL is '***': ")
    assert reason in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("text", "is_valid"), [("team-a:llm", True), ("{fleet}", True), ("a b", False), ("*", False)])
def test_a_prefix_has_no_characters_with_a_meaning_in_patterns(text: str, *, is_valid: bool) -> None:
    if is_valid:
        assert load_settings({"STATE_PREFIX": text}, NO_FILE).settings.state_prefix == text
    else:
        with pytest.raises(SettingsError, match=r"must be 1 to 64 letters"):
            load_settings({"STATE_PREFIX": text}, NO_FILE)


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "redis" else find(name))

    assert load_settings({}, NO_FILE).settings == Settings()
    with pytest.raises(SettingsError) as caught:
        load_settings({"STATE_URL": "redis://:secret-word@redis"}, NO_FILE)
    assert str(caught.value) == (
        "STATE_URL is redis://redis: it needs a package that is not installed: "
        "pip install 'inference-engine-proxy-server[redis]'"
    )
