from __future__ import annotations

import asyncio

import pytest

from inference_engine_proxy_server.tasks import keep_running as keep_running_module
from inference_engine_proxy_server.tasks.keep_running import keep_running


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keep_running_module, "_PAUSE_SECONDS", 0.001)


async def test_a_crashed_task_is_logged_by_name_and_restarted(caplog: pytest.LogCaptureFixture) -> None:
    runs = 0

    async def run() -> None:
        nonlocal runs
        runs += 1
        if runs < 3:
            raise RuntimeError("oh")
        if runs == 3:
            raise ExceptionGroup("of a task group", [ValueError()])

    async with asyncio.timeout(5):
        await keep_running("laundry", run)

    assert runs == 4
    assert caplog.text.count("background task 'laundry' crashed; restarting it") == 3
    assert "RuntimeError: oh" in caplog.text


async def test_a_cancelled_task_ends() -> None:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(keep_running("sleep", lambda: asyncio.sleep(1000)))
        await asyncio.sleep(0)
        task.cancel()
    assert task.cancelled()


async def test_a_task_that_returns_is_not_restarted() -> None:
    runs = []

    async def run() -> None:
        runs.append(1)

    await keep_running("short", run)
    assert runs == [1]
