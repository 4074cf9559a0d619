"""Descriptions of backends that join while the proxy runs, and the file that keeps them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from inference_engine_proxy_server.config.added_backends import (
    AddedBackendsError,
    AnnouncedEntry,
    DescriptionError,
    JoiningEntry,
    as_written,
    config_of,
    described_backend,
    read_added_backends,
    write_added_backends,
)
from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.config.sources import SettingsError, load_settings

FULL: dict[str, Any] = {
    "url": "http://a:1",
    "name": "llm-1",
    "engine": "vllm",
    "weight": 2.5,
    "tier": 2,
    "api_key": "a-secret",
    "models": ["m"],
    "external": True,
    "capacity": 3,
}


def test_an_entry_comes_back_as_it_was_written() -> None:
    assert as_written(described_backend(FULL, JoiningEntry)) == FULL
    assert as_written(described_backend({"url": "HTTP://A:1/"}, JoiningEntry)) == {"url": "http://a:1"}


def test_the_lease_is_no_part_of_the_entry() -> None:
    announced = described_backend({"url": "http://a", "lease_seconds": 9, "announcer": "x"}, AnnouncedEntry)
    assert (announced.lease_seconds, announced.announcer) == (9, "x")
    assert as_written(announced) == {"url": "http://a"}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"url": "dns+http://a:1"}, "url: 'dns+http://a:1' must begin with http:// or https://"),
        ({"url": "http://a", "lease_seconds": 0}, "lease_seconds: must be a number from 1 to 3600"),
        ({"url": "http://a", "announcer": "a b"}, "announcer: must be up to 64 letters"),
        ({"url": "http://a", "api_key_env": "X"}, "api_key_env cannot be announced"),
        ({"url": "http://a", "tier": None}, "tier: must have a value"),
        ({}, "url is missing"),
    ],
)
def test_a_wrong_announcement_is_explained(content: dict[str, Any], problem: str) -> None:
    with pytest.raises(DescriptionError, match=re.escape(problem)):
        described_backend(content, AnnouncedEntry)


def test_a_secret_in_the_wrong_place_is_not_repeated() -> None:
    with pytest.raises(DescriptionError) as error:
        described_backend({"url": "http://a", "sk-0123456789abcdef": 1}, JoiningEntry)
    assert "sk-0123456789abcdef" not in str(error.value)


def test_a_backend_without_a_key_of_its_own_gets_the_usual_one() -> None:
    usual = SecretStr("usual")
    assert config_of({"url": "http://a"}, {}, usual).api_key == usual
    assert config_of({"url": "http://a", "api_key_env": "K"}, {"K": "own"}, usual).api_key == SecretStr("own")
    with pytest.raises(DescriptionError, match="api_key_env: the environment variable"):
        config_of({"url": "http://a", "api_key_env": "K"}, {}, usual)


def test_the_file_comes_back_as_it_was_written_and_is_private(tmp_path: Path) -> None:
    file = tmp_path / "added.json"
    assert read_added_backends(file) == []
    write_added_backends(file, [FULL])
    write_added_backends(file, [FULL, {"url": "http://b"}])
    assert read_added_backends(file) == [FULL, {"url": "http://b"}]
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["added.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "added.json"
    write_added_backends(file, [FULL])
    file.unlink()
    file.mkdir()  # cannot be replaced by a file
    with pytest.raises(OSError, match="directory"):
        write_added_backends(file, [])
    assert [path.name for path in tmp_path.iterdir()] == ["added.json"]


def test_a_file_that_lists_a_server_twice_is_rejected(tmp_path: Path) -> None:
    file = tmp_path / "added.json"
    file.write_text('{"backends": [{"url": "http://a"}, {"url": "http://a:80"}]}')
    with pytest.raises(
        AddedBackendsError, match=r"backends: 'http://a:80' is listed twice; repair the file, or remove"
    ):
        read_added_backends(file)


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_directory_without_write_permission_is_an_error_at_the_start(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(AddedBackendsError, match="its directory is not writable"):
            read_added_backends(tmp_path / "added.json")
    finally:
        tmp_path.chmod(0o700)


def test_a_directory_in_place_of_the_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AddedBackendsError, match=r"DYNAMIC_BACKENDS_FILE is .*: Is a directory"):
        read_added_backends(tmp_path)


def test_keys_of_operators_and_engines_must_differ() -> None:
    same = {"ADMIN_KEY": "a", "ANNOUNCE_KEY": "a", "BACKENDS": "http://a"}
    with pytest.raises(SettingsError, match="ANNOUNCE_KEY and ADMIN_KEY are the same"):
        load_settings(same, Path("/no/file"))


@pytest.mark.parametrize("setting", ["ANNOUNCE_KEY", "DYNAMIC_BACKENDS_FILE"])
def test_backends_are_not_required_if_they_can_join(setting: str) -> None:
    loaded = load_settings({setting: "value"}, Path("/no/file"), backends_required=True)
    assert loaded.settings == Settings(**{setting.lower(): "value"})
