"""File changes that a watch notices."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from inference_engine_proxy_server.config import file_watch
from inference_engine_proxy_server.config.file_watch import FileWatch


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "watched"
    path.write_text("before")
    return path


def test_a_change_is_reported_once(file: Path) -> None:
    watch = FileWatch([file])
    assert not watch.changed()

    file.write_text("something longer")

    assert [watch.changed(), watch.changed()] == [True, False]


def test_a_file_that_disappears_or_appears_has_changed(file: Path) -> None:
    watch = FileWatch([file])

    file.unlink()
    assert [watch.changed(), watch.changed()] == [True, False]

    file.write_text("before")
    assert watch.changed()


def test_a_replaced_file_has_changed_even_with_equal_size_and_time(file: Path) -> None:
    watch = FileWatch([file])
    other = file.with_name("other")
    other.write_text("behind")
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))

    other.replace(file)

    assert watch.changed()


def test_any_of_several_files_counts(file: Path) -> None:
    other = file.with_name("other")
    watch = FileWatch([other, file])

    other.write_text("x")

    assert watch.changed()


def test_without_files_nothing_changes() -> None:
    assert not FileWatch(()).changed()


def test_other_files_may_be_watched_later(file: Path) -> None:
    watch = FileWatch([file.with_name("other")])

    watch.files = (file,)
    assert watch.changed()

    file.write_text("something longer")
    assert watch.changed()


def write(file: Path, text: str, *, seconds_ago: float) -> None:
    file.write_text(text)
    written_at = time.time() - seconds_ago
    os.utime(file, (written_at, written_at))


@pytest.mark.parametrize(
    ("text", "seconds_ago", "is_complete"),
    [
        pytest.param("a: [1,\n", 0.5, False, id="just written"),
        pytest.param("a: [1,\n", 3.0, True, id="not written for a while"),
        pytest.param("a: [1,", 3.0, False, id="its last line does not end"),
        pytest.param("a: [1,", 11.0, True, id="its last line never ends"),
        pytest.param("", 3.0, False, id="empty"),
        pytest.param("", 11.0, True, id="empty for long"),
        pytest.param("a: [1,\n", -3600.0, True, id="written in the future"),
    ],
)
def test_a_file_that_is_being_written_has_not_changed_yet(
    file: Path, text: str, seconds_ago: float, is_complete: bool
) -> None:
    watch = FileWatch([file])
    write(file, text, seconds_ago=seconds_ago)
    assert watch.changed_completely() is is_complete
    write(file, "complete\n", seconds_ago=5)
    assert watch.changed_completely()
    assert not watch.changed_completely()


@pytest.mark.parametrize("distrusts_fresh", [False, True])
def test_a_file_that_was_incomplete_at_the_start_changes_later_if_it_has_not_been_read(
    file: Path, distrusts_fresh: bool
) -> None:
    write(file, "half", seconds_ago=9.8)
    watch = FileWatch([file], distrusts_fresh=distrusts_fresh)
    time.sleep(0.3)
    assert watch.changed_completely() is distrusts_fresh


def test_one_incomplete_file_holds_back_the_others(file: Path) -> None:
    other = file.with_name("other")
    watch = FileWatch([other, file])
    write(other, "x\n", seconds_ago=5)
    write(file, "half", seconds_ago=0)
    assert not watch.changed_completely()
    write(file, "whole\n", seconds_ago=5)
    assert watch.changed_completely()


def test_a_file_that_disappears_is_a_complete_change(file: Path) -> None:
    watch = FileWatch([file])
    file.unlink()
    assert watch.changed_completely()


async def test_a_running_watch_calls_back_after_each_change(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_watch, "_POLL_SECONDS", 0.001)
    monkeypatch.setattr(file_watch, "_COMPLETE_SECONDS", 0.001)
    called = asyncio.Event()
    running = asyncio.get_running_loop().create_task(FileWatch([file]).run(called.set))
    await asyncio.sleep(0)  # the watch has the first stamp
    try:
        for text in ("longer text\n", "even longer text\n"):
            called.clear()
            await asyncio.to_thread(file.write_text, text)
            await asyncio.wait_for(called.wait(), 10)
    finally:
        running.cancel()
        await asyncio.wait([running])
