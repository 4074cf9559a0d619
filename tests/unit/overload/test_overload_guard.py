from __future__ import annotations

import asyncio
import errno
import logging
import os
import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from inference_engine_proxy_server.errors import CapacityError
from inference_engine_proxy_server.overload import overload_guard
from inference_engine_proxy_server.overload.memory_use import MemoryUse
from inference_engine_proxy_server.overload.overload_guard import OverloadGuard
from inference_engine_proxy_server.requests.destinations import Destination
from inference_engine_proxy_server.wire.load import Load
from inference_engine_proxy_server.wire.request_head import HeadLimits, RequestHead, parse_request_head
from support.fakes.front import until


class Memory(MemoryUse):
    """Memory use that a test sets."""

    def __init__(self) -> None:
        super().__init__(None)
        self.in_use = 0.0
        self.trim_count = 0

    def share(self) -> float:
        return self.in_use

    def trim(self) -> None:  # type: ignore[override]
        self.trim_count += 1


class Guarded:
    """A guard with its inputs and effects."""

    def __init__(self) -> None:
        self.load = Load(time.monotonic, most_requests=10)
        self.memory = Memory()
        self.shed: Counter[str] = Counter()
        self.guard = OverloadGuard(
            self.load,
            self.memory,
            count_shed=lambda reason: self.shed.update([reason]),
            clock=time.monotonic,
        )

    def reason(self) -> str:
        """Why the next request would be refused; empty if it would be admitted."""
        if self.load.requests < self.load.most_requests:
            return ""
        self.shed.clear()
        with pytest.raises(CapacityError):
            self.guard.shed("requests", head_of("/v1/models/x"))
        [reason] = self.shed
        return reason


def head_of(path: str) -> RequestHead:
    section = f"GET {path} HTTP/1.1\r\nHost: a\r\n".encode()
    head = parse_request_head(section, HeadLimits(line_bytes=1024, total_bytes=4096, field_count=20))
    head.destination = Destination.OWN if path == "/health" else Destination.LIGHT
    return head


@pytest.fixture
async def guarded(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Guarded]:
    monkeypatch.setattr(overload_guard, "_TICK_SECONDS", 0.005)
    monkeypatch.setattr(overload_guard, "_SLOW_TICK_SECONDS", 0.005)
    guarded = Guarded()
    async with running(guarded.guard):
        yield guarded


@asynccontextmanager
async def running(guard: OverloadGuard) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(guard.run())
        yield
        assert not task.done()
        task.cancel()


def test_a_refusal_has_retry_after_and_is_counted() -> None:
    guarded = Guarded()
    with pytest.raises(CapacityError) as caught:
        guarded.guard.shed("requests", head_of("/v1/chat/completions"))
    assert (caught.value.status, caught.value.code, caught.value.retry_after_seconds) == (503, "overloaded", 1)
    assert guarded.shed == {"requests": 1}


def test_own_paths_are_never_refused_except_for_their_bodies() -> None:
    guarded = Guarded()
    guarded.guard.shed("requests", head_of("/health"))
    assert not guarded.shed
    with pytest.raises(CapacityError):
        guarded.guard.shed("request_bytes", head_of("/health"))


def test_a_connection_beyond_the_limit_is_refused() -> None:
    guarded = Guarded()
    with pytest.raises(CapacityError):
        guarded.guard.shed("connections", None)
    assert guarded.shed == {"connections": 1}


def test_a_refusal_costs_far_less_than_a_millisecond() -> None:
    guarded = Guarded()
    head = head_of("/v1/chat/completions")
    began = time.process_time()
    for _ in range(1000):
        with pytest.raises(CapacityError):
            guarded.guard.shed("requests", head)
    assert time.process_time() - began < 0.5


async def test_requests_are_refused_after_a_second_of_lag_until_the_event_loop_recovers(
    guarded: Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(6):
        assert guarded.reason() == ""
        time.sleep(0.4)  # noqa: ASYNC251 - blocks the loop on purpose
        for _ in range(3):  # loop iterations in which the guard wakes up and goes to sleep again
            await asyncio.sleep(0)
        if guarded.reason():
            break
    assert guarded.reason() == "event_loop"
    assert guarded.guard.lag_seconds > 0.25
    assert (
        len(re.findall(r"the event loop is 0\.\d s late; new requests are rejected until it recovers", caplog.text))
        == 1
    )

    await until(lambda: guarded.reason() == "")

    assert guarded.load.most_requests == 10


async def test_one_long_block_is_logged_and_refuses_no_request(
    guarded: Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    time.sleep(1.3)  # noqa: ASYNC251 - blocks the loop on purpose
    await until(lambda: "the event loop was blocked" in caplog.text)
    assert "at: test_one_long_block_is_logged_and_refuses_no_request (test_overload_guard.py:" in caplog.text
    assert guarded.reason() == ""


async def test_when_memory_is_short_connections_end_and_memory_is_trimmed(
    guarded: Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    guarded.memory.in_use = 0.84
    await asyncio.sleep(0.05)
    assert not guarded.load.ends_connections
    guarded.memory.in_use = 0.86
    await until(lambda: guarded.load.ends_connections)
    assert guarded.reason() == ""
    assert guarded.memory.trim_count == 1
    assert "memory is short: 86 % of the limit is in use" in caplog.text
    guarded.memory.in_use = 0.5
    await until(lambda: not guarded.load.ends_connections)


async def test_when_memory_is_full_one_request_at_a_time_is_served(guarded: Guarded) -> None:
    guarded.memory.in_use = 0.96
    await until(lambda: guarded.load.most_requests == 1)
    assert guarded.reason() == ""
    guarded.load.requests = 1
    assert guarded.reason() == "memory"
    guarded.memory.in_use = 0.5
    await until(lambda: guarded.load.most_requests == 10)


async def test_a_recurring_problem_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, guarded: Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for _ in range(5):
        guarded.memory.in_use = 0.9
        await until(lambda: guarded.load.ends_connections)
        guarded.memory.in_use = 0.1
        await until(lambda: not guarded.load.ends_connections)
    assert caplog.text.count("memory is short") == 1
    monkeypatch.setattr(overload_guard, "_CALM_SECONDS", 0.0)
    guarded.memory.in_use = 0.9
    await until(lambda: guarded.load.ends_connections)
    guarded.memory.in_use = 0.1
    await until(lambda: "resolved: memory is short" in caplog.text)


async def test_shutdown_ends_connections_for_good(guarded: Guarded) -> None:
    guarded.guard.begin_shutdown()
    assert guarded.load.ends_connections
    await asyncio.sleep(0.05)
    assert guarded.load.ends_connections


class Idle:
    """A connection that is idle until it is closed."""

    exchange = None
    deadline = 1.0
    is_idle = True

    def close(self) -> None:
        self.is_idle = False


async def test_running_out_of_files_is_logged_once_and_closes_idle_connections(
    monkeypatch: pytest.MonkeyPatch, guarded: Guarded, caplog: pytest.LogCaptureFixture
) -> None:
    connections = [Idle() for _ in range(100)]
    for connection in connections:
        guarded.load.enter(connection)

    def fails(*_: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fails)
        await until(lambda: not any(connection.is_idle for connection in connections))
        await asyncio.sleep(0.05)
    assert caplog.text.count("no more files can be opened") == 1
