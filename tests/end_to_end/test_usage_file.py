"""The ledger as a file: several workers, a killed process, a locked file, a full disk, and `inference-proxy usage`."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
import resource
import sqlite3
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, closing, contextmanager
from pathlib import Path

import pytest

from inference_engine_proxy_server.usage.ledger import BATCH_SECONDS
from inference_engine_proxy_server.usage.query import query_of, read_rows
from support.engine import Engine, answers_with
from support.fakes.engine import http_reply
from support.http_client import chat, send
from support.program import Proxy, program, run_command, started
from support.waiting import eventually

CHAT = "/v1/chat/completions"
ANSWER = http_reply(
    b'{"usage":{"prompt_tokens":9,"completion_tokens":1}}', fields=b"content-type: application/json\r\n"
)
SECRET = "sk-alice-0123456789abcdef"  # noqa: S105 - opens nothing
BEARER = {"authorization": f"Bearer {SECRET}"}
KEYS = f"keys:\n  - {{name: alice, secret: {SECRET}, tokens_per_day: 1000}}\n"
LEDGER = {"USAGE_FILE": "usage.db"}


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    async with Engine(answers_with(ANSWER)) as engine:
        yield engine


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "keys.yaml").write_text(KEYS)
    return tmp_path


def counted(folder: Path) -> int:
    """Requests in the file."""
    rows = read_rows(folder / "usage.db", query_of({}, time.time()))
    return sum(row.counts.requests for row in rows)


async def ask(proxy: Proxy, count: int = 1) -> list[int]:
    """The statuses of requests that were sent one after another, each on a connection of its own."""
    return [(await send(proxy.url, CHAT, chat(), headers=BEARER)).status for _ in range(count)]


# --- stops


async def test_a_stopped_process_has_written_everything(folder: Path, engine: Engine) -> None:
    async with program(folder, engine.url, **LEDGER) as proxy:
        assert await ask(proxy, 20) == [200] * 20
    assert counted(folder) == 20


async def test_a_killed_process_loses_one_batch_at_most(folder: Path, engine: Engine) -> None:
    answered: list[float] = []
    async with AsyncExitStack() as stack:
        proxy = await started(stack, folder, engine.url, **LEDGER)
        killed_at = time.monotonic() + 3.3 * BATCH_SECONDS
        while time.monotonic() < killed_at:
            await ask(proxy)
            answered.append(time.monotonic())
        killed_at = time.monotonic()
        await asyncio.to_thread(proxy.kill)
    # A batch that waited for a busy machine may have been late; the interval and as much again are allowed for.
    old = sum(at < killed_at - 2 * BATCH_SECONDS for at in answered)
    assert old > 0
    assert old <= counted(folder) <= len(answered)


# --- several workers


@pytest.mark.parametrize("workers", ["2", "3"])
async def test_all_workers_write_to_one_file(folder: Path, engine: Engine, workers: str) -> None:
    settings = {**LEDGER, "WORKERS": workers, "ADMIN_KEY": "k" * 16}
    async with program(folder, engine.url, **settings) as proxy:
        statuses = await asyncio.gather(*(ask(proxy, 10) for _ in range(12)))
        assert statuses == [[200] * 10] * 12

        async def is_reported() -> bool:
            reply = await send(proxy.url, "/admin/usage", headers={"authorization": f"Bearer {'k' * 16}"})
            return bool(reply.json["total"]["requests"] == 120)

        await eventually(is_reported)
    assert counted(folder) == 120


async def test_a_budget_holds_over_all_workers(folder: Path, engine: Engine) -> None:
    settings = {**LEDGER, "WORKERS": "2", "API_KEYS_FILE": "keys.yaml"}
    async with program(folder, engine.url, **settings) as proxy:
        used = 0
        for _ in range(30):  # 50 tokens in each batch interval, until no worker takes any more
            statuses = await ask(proxy, 5)
            used += 10 * statuses.count(200)
            if statuses.count(429) == 5:
                break
            await asyncio.sleep(1.5 * BATCH_SECONDS if used >= 900 else 0)
        # Each worker may overshoot by what the others have used within one batch interval.
        assert 1000 <= used <= 1100
        await asyncio.sleep(1.5 * BATCH_SECONDS)  # until each worker knows what the others have used
        assert await ask(proxy, 10) == [429] * 10
    async with program(folder, engine.url, **settings) as proxy:
        assert await ask(proxy, 10) == [429] * 10


# --- trouble with the file


@contextmanager
def files_no_larger_than(size: int, pid: int) -> Iterator[None]:
    """Let every write beyond ``size`` fail in the process, as on a full disk."""
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


async def test_a_full_disk_costs_log_lines_and_no_request(folder: Path, engine: Engine) -> None:
    async with program(folder, engine.url, ACCESS_LOG="false", **LEDGER) as proxy:
        await ask(proxy)
        await eventually(lambda: counted(folder) == 1)
        log = folder / "usage.db-wal"  # which every write makes longer
        with files_no_larger_than(log.stat().st_size, proxy.pid):
            assert await ask(proxy, 50) == [200] * 50
            await eventually(lambda: "cannot be written" in proxy.events)
            assert await ask(proxy, 50) == [200] * 50
            assert counted(folder) == 1
        await eventually(lambda: counted(folder) == 101)
        await eventually(lambda: "the ledger is written again; it lacks 0 requests" in proxy.events)
        assert len(re.findall("cannot be written", proxy.events)) == 1


async def test_a_locked_file_costs_log_lines_and_no_request(folder: Path, engine: Engine) -> None:
    async with program(folder, engine.url, **LEDGER) as proxy:
        await ask(proxy)
        await eventually(lambda: counted(folder) == 1)
        with closing(sqlite3.connect(folder / "usage.db")) as other:
            other.execute("BEGIN IMMEDIATE")
            assert await ask(proxy, 50) == [200] * 50
            await eventually(lambda: "cannot be written: database is locked" in proxy.events)
            metrics = await send(proxy.url, "/metrics")
            assert b"\ninference_proxy_usage_unwritten_requests 50.0\n" in metrics.body
        await eventually(lambda: counted(folder) == 51)


async def test_a_file_that_is_locked_at_the_start_is_no_reason_not_to_start(folder: Path, engine: Engine) -> None:
    async with program(folder, engine.url, **LEDGER) as proxy:
        await ask(proxy)
    with closing(sqlite3.connect(folder / "usage.db", isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        async with program(folder, engine.url, **LEDGER) as proxy:
            assert "cannot be used yet: database is locked" in proxy.events
            assert await ask(proxy, 5) == [200] * 5
            other.rollback()
            other.close()
            await eventually(lambda: counted(folder) == 6)


@pytest.mark.parametrize(
    ("file", "problem"),
    [
        ("keys.yaml", "USAGE_FILE is 'keys.yaml': it is not a SQLite file"),
        ("missing/usage.db", "USAGE_FILE is 'missing/usage.db': there is no folder"),
        (".", "USAGE_FILE is '.': unable to open database file: are the file and its folder writable?"),
    ],
)
def test_a_file_that_is_no_ledger_ends_the_start_with_one_line(folder: Path, file: str, problem: str) -> None:
    (folder / "keys.yaml").write_text(KEYS * 20)
    for workers in ("1", "2"):
        ended = run_command(folder, "serve", BACKENDS="http://127.0.0.1:1", PORT="0", USAGE_FILE=file, WORKERS=workers)
        assert ended.returncode == 2
        [line] = [line for line in ended.stderr.splitlines() if "USAGE_FILE" in line]
        assert problem in line


# --- the command


async def test_the_command_shows_usage_while_the_proxy_runs_and_afterwards(folder: Path, engine: Engine) -> None:
    settings = {**LEDGER, "API_KEYS_FILE": "keys.yaml"}
    async with program(folder, engine.url, **settings) as proxy:
        await ask(proxy, 3)
        await eventually(lambda: counted(folder) == 3)
        running = await asyncio.to_thread(run_command, folder, "usage", "--format", "json", **LEDGER)
    stopped = await asyncio.to_thread(run_command, folder, "usage", "--format", "json", **LEDGER)
    assert (running.returncode, running.stderr, running.stdout) == (0, "", stopped.stdout)
    report = json.loads(running.stdout)
    assert [(row["key"], row["model"], row["input_tokens"]) for row in report["rows"]] == [("alice", "m", 27)]
    table = run_command(folder, "usage", "--by", "key", **LEDGER).stdout.splitlines()
    assert table[0].split()[:2] == ["key", "requests"]
    assert [line.split()[:2] for line in table[1:]] == [["alice", "3"], ["total", "3"]]
    text = run_command(folder, "usage", "--by", "model", "--format", "csv", "--file", "usage.db").stdout
    assert [(row["model"], row["output_tokens"]) for row in csv.DictReader(io.StringIO(text))] == [("m", "3")]
    assert not run_command(folder, "usage", "--key", "bob", "--format", "csv", **LEDGER).stdout.splitlines()[1:]


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        ((), 2, "USAGE_FILE is not set, so there is no usage to show; --file FILE names a file"),
        (("--file", "keys.yaml"), 2, "keys.yaml cannot be read: it is not a SQLite file"),
        (("--file", "other.db"), 1, "other.db cannot be read: unable to open database file"),
        (("--file", "x", "--by", "dya"), 2, "--by: 'dya' is none of month, day, hour, key, model"),
        (("--file", "x", "--from", "now"), 2, "--from: must be a date like 2027-01-31"),
        (("--format", "xml"), 2, "invalid choice: 'xml'"),
    ],
)
def test_the_command_explains_mistakes(folder: Path, arguments: tuple[str, ...], code: int, problem: str) -> None:
    (folder / "keys.yaml").write_text(KEYS * 20)
    ended = run_command(folder, "usage", *arguments)
    assert (ended.returncode, ended.stdout) == (code, "")
    assert problem in ended.stderr
