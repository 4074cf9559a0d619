"""The valid keys, and reloads of their file."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import pytest

from inference_engine_proxy_server.access.key_ring import KeyRing
from inference_engine_proxy_server.config.api_keys import ApiKey, digest_of, parse_key
from inference_engine_proxy_server.config.key_file import KeyFileError

ALICE, BOB, CAROL = (f"sk-planted-{name}-0123456789" for name in ("alice", "bob", "carol"))
NOW = 1_800_000_000.0  # 2027-01-15T08:00:00Z


def listing(**secrets: str) -> str:
    return "keys:\n" + "".join(f"  - {{name: {name}, secret: {secret}}}\n" for name, secret in secrets.items())


def name_of(ring: KeyRing, secret: str) -> str | None:
    key = ring.find(digest_of(secret.encode()))
    return None if key is None else key.name


def names_in(ring: KeyRing) -> set[str]:
    return {key.name for key in ring}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.yaml"
    path.write_text(listing(bob=BOB))
    return path


@pytest.fixture
def ring(file: Path) -> KeyRing:
    return KeyRing([parse_key(f"alice:{ALICE}")], file, lambda: NOW)


def test_a_key_from_settings_or_file_is_found_by_its_secret(ring: KeyRing) -> None:
    assert (name_of(ring, ALICE), name_of(ring, BOB)) == ("alice", "bob")
    assert names_in(ring) == {"alice", "bob"}


@pytest.mark.parametrize("secret", ["", " ", ALICE[:-1], f"{ALICE} ", ALICE.upper(), f"alice:{ALICE}", "alice", CAROL])
def test_no_other_text_is_a_secret(ring: KeyRing, secret: str) -> None:
    assert name_of(ring, secret) is None


def test_without_a_file_there_are_only_the_keys_of_the_settings() -> None:
    ring = KeyRing([parse_key(f"alice:{ALICE}")], None, lambda: NOW)

    ring.reload_if_changed()

    assert names_in(ring) == {"alice"}


def test_a_key_is_valid_until_it_expires() -> None:
    times = [NOW]
    ring = KeyRing([ApiKey("a", digest_of(ALICE.encode()), expires_at=NOW + 1)], None, lambda: times[0])
    assert name_of(ring, ALICE) == "a"

    times[0] = NOW + 0.999
    assert name_of(ring, ALICE) == "a"

    times[0] = NOW + 1
    assert name_of(ring, ALICE) is None


def test_expiry_dates_in_the_file_apply(file: Path) -> None:
    for expires, name in (("2027-01-14", None), ("2027-01-15", "a"), ("2027-01-15T08:00:00Z", None)):
        file.write_text(f"keys: [{{name: a, secret: {BOB}, expires: {expires}}}]")

        assert name_of(KeyRing([], file, lambda: NOW), BOB) == name, expires


def test_a_changed_file_is_reloaded(ring: KeyRing, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    file.write_text(listing(carol=CAROL, bob2=BOB))

    ring.reload_if_changed()

    assert (name_of(ring, ALICE), name_of(ring, BOB), name_of(ring, CAROL)) == ("alice", "bob2", "carol")
    assert [record.getMessage() for record in caplog.records] == ["keys: reloaded, 3 valid, 0 expired"]


def test_expired_keys_are_not_counted_as_valid(ring: KeyRing, file: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    file.write_text(listing(bob=BOB).replace("}", ", expires: 2001-01-01}"))

    ring.reload_if_changed()

    assert caplog.messages == ["keys: reloaded, 1 valid, 1 expired"]


def test_a_key_removed_from_the_file_is_no_longer_valid(ring: KeyRing, file: Path) -> None:
    file.write_text(listing(carol=CAROL))

    ring.reload_if_changed()

    assert name_of(ring, BOB) is None


def test_a_replaced_file_of_the_same_size_is_reloaded(ring: KeyRing, file: Path) -> None:
    other = file.with_name("new.yaml")
    other.write_text(listing(rob=BOB))
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    assert other.stat().st_size == file.stat().st_size

    other.replace(file)
    ring.reload_if_changed()

    assert names_in(ring) == {"alice", "rob"}


def test_a_link_that_points_to_another_file_is_reloaded(tmp_path: Path) -> None:
    """Kubernetes mounts secrets in this way."""
    for version, name in (("1", "bob"), ("2", "rob")):
        (tmp_path / version).mkdir()
        (tmp_path / version / "keys.yaml").write_text(listing(**{name: BOB}))
    link = tmp_path / "current"
    link.symlink_to("1")
    ring = KeyRing([], link / "keys.yaml", lambda: NOW)

    (tmp_path / "next").symlink_to("2")
    (tmp_path / "next").replace(link)
    ring.reload_if_changed()

    assert names_in(ring) == {"rob"}


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(listing(carol=CAROL) + "  - {name: dave}\n", id="one entry is wrong"),
        pytest.param(listing(carol=CAROL, bob="short"), id="one secret is short"),
        pytest.param(listing(carol=CAROL) + "]", id="no YAML"),
        pytest.param(listing(alice=CAROL), id="a name of the settings"),
        pytest.param(listing(carol=ALICE), id="a secret of the settings"),
        pytest.param(listing(carol=CAROL) + listing(carol=BOB)[6:], id="a name twice"),
        pytest.param(f"keys: [{{name: carol, secret: {CAROL}, expires: 2027-02-31}}]", id="no such day"),
    ],
)
def test_an_invalid_file_is_refused_as_a_whole_and_logged_once(
    ring: KeyRing, file: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_text(content)

    ring.reload_if_changed()
    ring.reload_if_changed()

    assert names_in(ring) == {"alice", "bob"}
    assert (name_of(ring, BOB), name_of(ring, CAROL)) == ("bob", None)
    [record] = caplog.records
    assert record.levelname == "ERROR"
    assert record.getMessage().startswith(f"keys: {file}")
    assert record.getMessage().endswith("; the previous keys stay valid")
    assert "planted" not in caplog.text


def test_a_removed_file_keeps_the_previous_keys_and_is_logged_once(
    ring: KeyRing, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file.unlink()

    ring.reload_if_changed()
    ring.reload_if_changed()

    assert names_in(ring) == {"alice", "bob"}
    assert [record.getMessage() for record in caplog.records] == [
        f"keys: API_KEYS_FILE is {str(file)!r}: No such file or directory; the previous keys stay valid"
    ]


@pytest.mark.parametrize("before", ["no file", "a mistake"])
def test_a_repaired_file_is_reloaded(ring: KeyRing, file: Path, before: str) -> None:
    file.unlink()
    if before == "a mistake":
        file.write_text("keys: 1")
    ring.reload_if_changed()

    file.write_text(listing(carol=CAROL))
    ring.reload_if_changed()

    assert names_in(ring) == {"alice", "carol"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (listing(alice=CAROL), "two keys have the name alice"),
        (listing(carol=ALICE), "the keys alice and carol have the same secret"),
        (listing(carol="short"), "keys.0: a secret must have 16 characters"),
    ],
)
def test_an_invalid_file_prevents_the_start(file: Path, content: str, message: str) -> None:
    file.write_text(content)

    with pytest.raises(KeyFileError, match=message) as caught:
        KeyRing([parse_key(f"alice:{ALICE}")], file, lambda: NOW)

    assert str(caught.value).startswith(f"{file}: ")
    assert "planted" not in str(caught.value)


def test_a_missing_file_prevents_the_start(file: Path) -> None:
    with pytest.raises(KeyFileError, match="No such file"):
        KeyRing([], file.with_name("other.yaml"), lambda: NOW)


async def test_the_file_is_watched(ring: KeyRing, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference_engine_proxy_server.config.file_watch._POLL_SECONDS", 0.001)
    other = file.with_name("other.yaml")
    other.write_text(listing(carol=CAROL))

    def link() -> None:
        file.symlink_to(other)

    watch = asyncio.get_running_loop().create_task(ring.watch())
    try:
        for write, names in ((file.unlink, {"alice", "bob"}), (link, {"alice", "carol"})):
            write()
            async with asyncio.timeout(10):
                while names_in(ring) != names:  # noqa: ASYNC110 - a key ring has no events
                    await asyncio.sleep(0.001)
    finally:
        watch.cancel()
        await asyncio.wait([watch])
    assert watch.cancelled()
