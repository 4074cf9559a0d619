"""File changes that a watch notices."""

from __future__ import annotations

import asyncio
import os
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


async def test_a_running_watch_calls_back_after_each_change(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_watch, "_POLL_SECONDS", 0.001)
    called = asyncio.Event()
    running = asyncio.get_running_loop().create_task(FileWatch([file]).run(called.set))
    await asyncio.sleep(0)  # the watch has the first stamp
    try:
        for text in ("longer text", "even longer text"):
            called.clear()
            await asyncio.to_thread(file.write_text, text)
            await asyncio.wait_for(called.wait(), 10)
    finally:
        running.cancel()
        await asyncio.wait([running])
