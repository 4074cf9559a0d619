from __future__ import annotations

import asyncio
import fcntl
import io
import json
import os
import re
import sys
import threading
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, TextIO

import pytest

from inference_engine_proxy_server.telemetry import line_writer
from inference_engine_proxy_server.telemetry.access_log import AccessLog
from inference_engine_proxy_server.telemetry.finished_requests import FinishedRequests
from inference_engine_proxy_server.telemetry.line_writer import LineWriter, sink_of
from inference_engine_proxy_server.wire.outcome import Outcome
from support.engine import Engine
from support.fleet import Fleet
from support.records import request_record
from support.waiting import eventually

CHAT = "/v1/chat/completions"
TEXT_LINE = re.compile(
    r'(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) (?P<client>\S+) "(?P<method>\S+) (?P<path>\S+)" '
    r'(?P<status>\d{3}) (?P<outcome>\w+) backend=(?P<backend>\S+) model=(?P<model>[^\s"]+|"(?:[^"\\]|\\.)*") '
    r"first_byte=(?P<first_byte>-|\d+\.\d+) seconds=(?P<seconds>\d+\.\d{4}) bytes=(?P<bytes>\d+) "
    r"id=(?P<id>[\w.-]+)(?P<more>(?: [a-z_]+=(?:[^\s\"]+|\"[^\"]*\"))*)"
)
JSON_KEYS = [
    "time", "client", "method", "path", "status", "outcome", "backend", "model", "first_byte_seconds", "seconds",
    "sent_bytes", "request_id", "resumes", "alias", "termination", "is_stream", "queue_seconds", "attempts",
    "prompt_tokens", "cached_tokens", "output_tokens", "key", "policy", "tokens_per_second",
]  # fmt: skip
FORGED = [
    pytest.param('x\n2026-01-01T00:00:00.000Z 1.2.3.4:5 "GET /forged" 200 complete', id="line feed"),
    pytest.param("x\r\nforged", id="carriage return"),
    pytest.param('x" id=forged', id="quote"),
    pytest.param('x"forged', id="quote without a blank"),
    pytest.param("x id=forged", id="blank"),
    pytest.param('x\\" id=forged', id="backslash"),
    pytest.param("x\u2028forged\u0085forged\u202eforged", id="other line ends"),
    pytest.param("x\x1b[2Jforged\x7f", id="terminal control"),
    pytest.param("模型-é", id="beyond ASCII"),
]


@pytest.fixture
async def fleet(capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Fleet]:
    """An access log on the captured standard output."""
    async with AsyncExitStack() as stack:
        yield Fleet(stack)


async def written(log_format: str = "text", *, has_probes: bool = True, **fields: Any) -> str:
    """The line of one request."""
    stream = io.StringIO()
    finished = FinishedRequests()
    log = AccessLog(finished, LineWriter(sink_of(stream)), log_format, has_probes=has_probes)
    finished.add(request_record(**fields))
    await closed(log)
    return stream.getvalue()


async def closed(log: AccessLog) -> None:
    """Write what ``log`` has collected."""
    task = asyncio.get_running_loop().create_task(log.run())
    await asyncio.sleep(0)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def _text(line: str) -> dict[str, str]:
    match = TEXT_LINE.fullmatch(line)
    assert match, line
    return match.groupdict()


async def test_each_request_is_one_line_of_text(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    engine = await fleet.engine()
    proxy = await fleet.proxy(engine)

    await proxy.http.post(CHAT, json={"model": "tiny"}, headers={"x-request-id": "mine"})
    await proxy.http.get("/health")
    await proxy.http.post("/sleep")
    await proxy.stop()

    passed_on, own, blocked = map(_text, capsys.readouterr().out.splitlines())
    assert passed_on["client"].startswith("127.0.0.1:")
    assert passed_on.items() >= {
        ("method", "POST"), ("path", CHAT), ("status", "200"), ("outcome", "complete"), ("backend", engine.url),
        ("model", "tiny"), ("id", "mine"),
    }  # fmt: skip
    assert float(passed_on["first_byte"]) <= float(passed_on["seconds"]) + 0.0001
    assert own.items() >= {("method", "GET"), ("path", "/health"), ("status", "200"), ("backend", "-"), ("model", "-")}
    assert blocked.items() >= {("path", "/sleep"), ("status", "403"), ("backend", "-")}


async def test_each_request_is_one_json_object(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    engine = await fleet.engine()
    proxy = await fleet.proxy(engine, log_format="json")

    reply = await proxy.http.post(CHAT, json={"model": "tiny"})
    await proxy.http.get("/health")
    await proxy.stop()

    passed_on, own = map(json.loads, capsys.readouterr().out.splitlines())
    assert list(passed_on) == list(own) == JSON_KEYS
    assert passed_on.items() >= {
        ("method", "POST"), ("path", CHAT), ("status", 200), ("outcome", "complete"), ("backend", engine.url),
        ("model", "tiny"), ("request_id", reply.headers["x-request-id"]),
    }  # fmt: skip
    assert passed_on["sent_bytes"] > len(reply.content)
    assert 0 <= passed_on["first_byte_seconds"] <= passed_on["seconds"]
    assert (own["backend"], own["model"]) == (None, None)


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_probes_are_logged_only_on_request(
    fleet: Fleet, capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    engine = await fleet.engine()
    written = []
    for has_probes in (False, True):
        settings = {"access_log_probes": has_probes, "log_format": log_format, "metrics_key": "right"}
        proxy = await fleet.proxy(engine, **settings)
        for path in ("/health", "/livez", "/readyz", "/metrics"):
            await proxy.http.get(path, headers={"authorization": "Bearer right"})
            await proxy.http.head(path, headers={"authorization": "Bearer right"})
        await proxy.http.get("/v1/models")
        await proxy.stop()
        written.append(capsys.readouterr().out.splitlines())
    assert [len(lines) for lines in written] == [1, 9]
    assert "/v1/models" in written[0][0]


@pytest.mark.parametrize(
    ("fields", "is_logged"),
    [
        ({"path": "/readyz", "status": 200}, False),
        ({"path": "/readyz", "status": 503}, False),
        ({"path": "/metrics", "status": 401}, True),
        ({"path": "/health", "method": "POST", "status": 404}, True),
        ({"path": "/health", "backend": "http://e"}, True),
        ({"path": "/docs"}, True),
        ({"path": "/"}, True),
    ],
)
async def test_only_answered_probes_are_left_out(fields: dict[str, Any], is_logged: bool) -> None:
    assert bool(await written(has_probes=False, **fields)) is is_logged


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_no_secret_is_logged(
    fleet: Fleet, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, log_format: str
) -> None:
    caplog.set_level("DEBUG", "inference_engine_proxy_server")
    engine = await fleet.engine()
    proxy = await fleet.proxy(engine, log_format=log_format)
    fields = {"authorization": "Bearer SECRET", "x-api-key": "SECRET", "cookie": "a=SECRET"}

    for path in (CHAT, "/health", "/sleep", "/v1/models"):
        await proxy.http.post(f"{path}?api_key=SECRET", json={"messages": ["SECRET"]}, headers=fields)
        await proxy.http.get(f"{path}?api_key=SECRET", headers=fields)
    await engine.stop()
    await proxy.http.post(f"{CHAT}?api_key=SECRET", json={"messages": ["SECRET"]}, headers=fields)
    reader, writer = await proxy.connect()
    writer.write(b"GET /?api_key=SECRET HTTP/1.1\r\nhost: a\r\nx y: SECRET\r\n\r\n")
    await reader.read()
    writer.close()
    await proxy.stop()

    logged = capsys.readouterr().out
    assert len(logged.splitlines()) == 10
    assert "SECRET" not in logged
    events = [record.getMessage() for record in caplog.records if record.name.startswith("inference_engine")]
    assert events
    assert "SECRET" not in "".join(events)


@pytest.mark.parametrize("model", FORGED)
async def test_model_cannot_forge_a_line(fleet: Fleet, capsys: pytest.CaptureFixture[str], model: str) -> None:
    engine = await fleet.engine()
    text, objects = await fleet.proxy(engine), await fleet.proxy(engine, log_format="json")

    await text.http.post(CHAT, json={"model": model})
    await text.stop()
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(_text(line)["model"]) == model
    assert line.isascii()

    await objects.http.post(CHAT, json={"model": model})
    await objects.stop()
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["model"] == model
    assert line.isascii()


async def test_path_cannot_forge_a_line(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    proxy = await fleet.proxy(await fleet.engine())
    reader, writer = await proxy.connect()

    writer.write(b'GET /"200%0a%0d\\"id=forged HTTP/1.1\r\nhost: a\r\nx-request-id: a"b\r\nconnection: close\r\n\r\n')
    await reader.read()
    writer.close()
    await proxy.stop()

    (line,) = capsys.readouterr().out.splitlines()
    logged = _text(line)
    assert (logged["path"], logged["status"]) == ('/"200%0a%0d\\"id=forged', "200")
    assert logged["id"] != 'a"b'


async def test_unreadable_request_is_one_line(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    proxy = await fleet.proxy(await fleet.engine())
    reader, writer = await proxy.connect()

    writer.write(b"GET /\x01 HTTP/1.1\r\n\r\n")
    await reader.read()
    writer.close()
    await proxy.stop()

    (line,) = capsys.readouterr().out.splitlines()
    assert _text(line).items() >= {("method", "-"), ("path", "-"), ("status", "400")}


async def test_disconnected_client_is_one_line(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    engine = await fleet.engine()
    proxy = await fleet.proxy(engine, log_format="json")
    engine.freed.clear()
    _, writer = await proxy.connect()
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 13\r\n\r\n" + b'{"model":"m"}')
    await engine.held.wait()

    writer.close()
    line = await eventually(lambda: capsys.readouterr().out)
    await proxy.stop()

    logged = json.loads(line)
    assert (logged["status"], logged["outcome"], logged["backend"], logged["model"]) == (
        499,
        "client_left",
        engine.url,
        "m",
    )
    assert (logged["first_byte_seconds"], logged["sent_bytes"]) == (None, 0)
    assert capsys.readouterr().out == ""


async def test_line_is_written_within_a_second(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    proxy = await fleet.proxy(await fleet.engine())

    await proxy.http.get("/livez")

    async with asyncio.timeout(2):
        line = await eventually(lambda: capsys.readouterr().out)
    assert _text(line.removesuffix("\n"))["path"] == "/livez"


async def test_lines_of_the_last_moment_are_written_at_shutdown(
    fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = await fleet.engine()
    proxy = await fleet.proxy(engine, drain_timeout_seconds=0)
    engine.freed.clear()
    reader, writer = await proxy.connect()
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}")
    await engine.held.wait()

    await proxy.stop()

    assert b" 503 " in await reader.readline()
    (line,) = capsys.readouterr().out.splitlines()
    assert _text(line)["status"] == "503"
    writer.close()


async def test_nothing_is_logged_when_it_is_off(fleet: Fleet, capsys: pytest.CaptureFixture[str]) -> None:
    proxy = await fleet.proxy(await fleet.engine(), access_log=False)

    await proxy.http.get("/livez")
    await proxy.stop()

    assert capsys.readouterr().out == ""


async def test_proxy_continues_when_its_log_is_not_read(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stdout = os.fdopen(writing, "w")
    monkeypatch.setattr(sys, "stdout", stdout)
    engine = await fleet.engine()
    proxy = await fleet.proxy(engine, refresh_seconds=0.05)

    await proxy.http.get("/livez")
    await eventually(lambda: "the access log cannot be written" in caplog.text)

    await _is_still_watched(engine)
    assert (await proxy.http.post(CHAT, json={})).status_code == 200
    with suppress(BrokenPipeError):
        stdout.close()


async def _is_still_watched(engine: Engine) -> None:
    asked = engine.count("/health")
    await eventually(lambda: engine.count("/health") > asked + 1)


async def test_log_that_cannot_be_written_is_reported_once_until_it_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stream: TextIO = (tmp_path / "log").open("w")
    place = os.dup(stream.fileno())
    full = os.open("/dev/full", os.O_WRONLY)
    writer = LineWriter(sink_of(stream))

    for target, lines in ((full, 3), (place, 1), (full, 2)):
        os.dup2(target, stream.fileno())
        for _ in range(lines):
            writer.put(["line"])
        await writer.close()

    assert [record.getMessage() for record in caplog.records] == [
        "the access log cannot be written: No space left on device"
    ] * 2
    assert (writer.dropped, (tmp_path / "log").read_text()) == (5, "line\n")
    os.dup2(place, stream.fileno())
    stream.close()
    os.close(place)
    os.close(full)


async def test_a_log_that_nobody_reads_blocks_nothing_and_counts_what_it_drops(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reading, writing = os.pipe()
    monkeypatch.setattr(sys, "stdout", os.fdopen(writing, "w"))
    proxy = await fleet.proxy(await fleet.engine())
    # Twice what the pipe, and then the proxy, can hold.
    monkeypatch.setattr(line_writer, "_MOST_LINES", 200)
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    path = "/" + "x" * 500

    async def has_dropped() -> bool:
        for _ in range(50):
            assert (await proxy.http.get(path)).status_code == 200
        return await proxy.metric("access_log_dropped_lines_total") > 0

    await eventually(has_dropped)
    assert caplog.text.count("its lines are dropped") == 1
    assert (await proxy.http.post(CHAT, json={})).status_code == 200

    lines = b""  # a reader gets whole lines, and the proxy writes new ones
    os.set_blocking(reading, False)

    async def has_new_line() -> bool:
        nonlocal lines
        await proxy.http.get("/new")
        with suppress(BlockingIOError):
            lines += os.read(reading, 1 << 20)
        return b'"GET /new"' in lines

    await eventually(has_new_line)
    assert all(TEXT_LINE.fullmatch(line) for line in lines.decode().splitlines()[:-1])
    os.set_blocking(reading, True)
    reader = threading.Thread(target=lambda: all(iter(lambda: os.read(reading, 1 << 20), b"")))
    reader.start()
    await proxy.stop()
    sys.stdout.close()
    reader.join()
    os.close(reading)


async def test_a_log_that_nobody_reads_does_not_delay_the_end(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    stdout = os.fdopen(writing, "w")
    monkeypatch.setattr(sys, "stdout", stdout)
    proxy = await fleet.proxy(await fleet.engine())
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    for _ in range(30):
        await proxy.http.get("/" + "x" * 500)

    await proxy.stop()  # has a deadline of its own

    os.close(reading)
    with suppress(BrokenPipeError):
        stdout.close()


async def test_long_model_is_cut() -> None:
    assert _text((await written(model="m" * 5000)).removesuffix("\n"))["model"] == "m" * 100
    assert json.loads(await written("json", model="m" * 5000))["model"] == "m" * 100


async def test_a_model_that_is_no_text_is_escaped() -> None:
    assert json.loads(await written("json", model="\ud800"))["model"] == "\ud800"
    assert _text((await written(model="\ud800")).removesuffix("\n"))["model"] == '"\\ud800"'


async def test_unknown_value_is_a_dash() -> None:
    logged = _text((await written(backend=None, model=None, first_byte_seconds=None)).removesuffix("\n"))

    assert (logged["backend"], logged["model"], logged["first_byte"]) == ("-", "-", "-")


NUMBERS: dict[str, Any] = {
    "backend": "http://a", "first_byte_seconds": 1.0, "seconds": 3.0, "is_stream": True, "attempts": 2,
    "queue_seconds": 0.25, "prompt_tokens": 30, "cached_tokens": 25, "output_tokens": 21, "alias": "an alias",
    "resumes": 1, "key": "alice", "policy": "tied", "termination": "backend_timeout", "outcome": Outcome.BROKEN,
}  # fmt: skip


async def test_a_line_has_the_numbers_of_the_request() -> None:
    line = _text((await written(**NUMBERS)).removesuffix("\n"))
    assert line["more"] == (
        " in=30 cached=25 out=21 tokens_per_second=10.0 queue=0.2500 attempts=2 reason=backend_timeout resumes=1"
        ' alias="an alias"'
    )
    assert json.loads(await written("json", **NUMBERS)).items() >= (NUMBERS | {"tokens_per_second": 10.0}).items()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, ""),
        ({"attempts": 1}, ""),
        ({"prompt_tokens": 3, "output_tokens": 0}, " in=3 out=0"),
        ({"output_tokens": 4, "seconds": 2.5, "queue_seconds": 0.5}, " out=4 tokens_per_second=2.0 queue=0.5000"),
        ({"output_tokens": 1, "is_stream": True}, " out=1"),
        ({"status": 404, "termination": "error_status"}, " reason=error_status"),
        ({"outcome": Outcome.CLIENT_LEFT, "termination": "client_left"}, ""),
    ],
)
async def test_words_that_say_nothing_are_left_out(fields: dict[str, Any], words: str) -> None:
    assert _text((await written(**fields)).removesuffix("\n"))["more"] == words


def test_many_lines_are_written_without_waiting() -> None:
    blocks: list[bytes] = []
    writer = LineWriter(blocks.append)
    finished = FinishedRequests()
    AccessLog(finished, writer, "text")

    for _ in range(2000):
        finished.add(request_record())

    deadline = time.monotonic() + 20
    while b"".join(blocks).count(b"\n") < 1500 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert b"".join(blocks).count(b"\n") >= 1500


@pytest.mark.parametrize("path", ["/v1/models", "/" + "x" * 1000, "/" + "x" * 5000])
async def test_lines_stay_whole_and_in_order_if_other_processes_write_to_the_log(path: str) -> None:
    writes: list[bytes] = []
    finished = FinishedRequests()
    log = AccessLog(finished, LineWriter(writes.append, is_shared=True), "text")
    for number in range(100):
        finished.add(request_record(path=path, request_id=f"id-{number}"))
    await closed(log)

    assert all(written.endswith(b"\n") and b"\n\n" not in written for written in writes)
    assert all(len(written) <= 4096 or written.count(b"\n") == 1 for written in writes)
    assert len(path) > 1000 or len(writes) < 10
    lines = b"".join(writes).decode().splitlines()
    assert [line.rpartition("=id-")[2] for line in lines] == list(map(str, range(100)))
