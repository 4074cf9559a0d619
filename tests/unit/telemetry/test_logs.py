from __future__ import annotations

import asyncio
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, TextIO

import pytest

from inference_engine_proxy_server.telemetry.logs import AccessLog
from support.engine import Engine
from support.fleet import Fleet
from support.records import request_record
from support.waiting import eventually

CHAT = "/v1/chat/completions"
TEXT_LINE = re.compile(
    r'(?P<time>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) (?P<client>\S+) "(?P<method>\S+) (?P<path>\S+)" '
    r'(?P<status>\d{3}) (?P<outcome>\w+) backend=(?P<backend>\S+) model=(?P<model>[^\s"]+|"(?:[^"\\]|\\.)*") '
    r"first_byte=(?P<first_byte>-|\d+\.\d+) seconds=(?P<seconds>\d+\.\d{4}) bytes=(?P<bytes>\d+) "
    r"id=(?P<id>[\w.-]+)"
)
JSON_KEYS = [
    "time", "client", "method", "path", "status", "outcome", "backend", "model", "alias", "first_byte_seconds",
    "seconds", "sent_bytes", "request_id", "resumes",
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


@pytest.fixture
def one_line() -> Callable[..., str]:
    """Log one request; returns its line."""

    def write(log_format: str = "text", **fields: Any) -> str:
        stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", newline="")
        log = AccessLog(stream, log_format)
        _write(log, **fields)
        log.flush()
        stream.seek(0)
        return stream.read()

    return write


def _write(log: AccessLog, **fields: Any) -> None:
    log.write(request_record(**fields))


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
def test_only_answered_probes_are_left_out(fields: dict[str, Any], is_logged: bool) -> None:
    stream = io.StringIO()
    log = AccessLog(stream, "text", has_probes=False)
    _write(log, **fields)
    log.flush()
    assert bool(stream.getvalue()) is is_logged


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


def test_log_that_cannot_be_written_is_reported_once_until_it_can(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stream: TextIO = (tmp_path / "log").open("w")
    log = AccessLog(stream, "text")
    place = os.dup(stream.fileno())
    full = os.open("/dev/full", os.O_WRONLY)

    for target, lines in ((full, 3), (place, 1), (full, 2)):
        os.dup2(target, stream.fileno())
        for _ in range(lines):
            _write(log)
            log.flush()

    assert [record.getMessage() for record in caplog.records] == [
        "the access log cannot be written: No space left on device"
    ] * 2
    os.dup2(place, stream.fileno())
    stream.close()
    os.close(place)
    os.close(full)


def test_long_model_is_cut(one_line: Callable[..., str]) -> None:
    assert _text(one_line(model="m" * 5000).removesuffix("\n"))["model"] == "m" * 100
    assert json.loads(one_line("json", model="m" * 5000))["model"] == "m" * 100


def test_unknown_value_is_a_dash(one_line: Callable[..., str]) -> None:
    logged = _text(one_line(backend=None, model=None, first_byte_seconds=None).removesuffix("\n"))

    assert (logged["backend"], logged["model"], logged["first_byte"]) == ("-", "-", "-")


def test_many_lines_are_written_without_waiting() -> None:
    stream = io.StringIO()
    log = AccessLog(stream, "text")

    for _ in range(2000):
        _write(log)

    assert stream.getvalue().count("\n") >= 1500


class _Pipe(io.StringIO):
    """Records each write."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[str] = []

    def flush(self) -> None:
        self.writes.append(self.getvalue())
        self.seek(0)
        self.truncate()


@pytest.mark.parametrize("path", ["/v1/models", "/" + "x" * 1000, "/" + "x" * 5000])
def test_lines_stay_whole_and_in_order_if_other_processes_write_to_the_log(path: str) -> None:
    pipe = _Pipe()
    log = AccessLog(pipe, "text", is_shared=True)
    for number in range(100):
        _write(log, path=path, request_id=f"id-{number}")
    log.flush()

    assert all(written.endswith("\n") and "\n\n" not in written for written in pipe.writes)
    assert all(len(written) <= 4096 or written.count("\n") == 1 for written in pipe.writes)
    assert len(path) > 1000 or len(pipe.writes) < 10
    assert [line.rpartition("=id-")[2] for line in "".join(pipe.writes).splitlines()] == list(map(str, range(100)))


def _events(log_format: str, level: str = "info", worker: int | None = None) -> list[str]:
    """The standard error of a process that logs one event of each level, and one with a traceback."""
    program = f"""
import logging
from inference_engine_proxy_server.telemetry.logs import configure_logging
configure_logging({level!r}, {log_format!r}, {worker!r})
logger = logging.getLogger("some.where")
logger.debug("a %s", "detail")
logger.info("it %s", "works")
logging.getLogger("uvicorn.error").info("chatter")
try:
    1 / 0
except ZeroDivisionError:
    logger.exception("it broke")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_events_are_lines_of_text_on_standard_error() -> None:
    first, second, *traceback = _events("text")

    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z info    it works", first)
    assert second.endswith("Z error   it broke")
    assert (traceback[0], traceback[-1]) == (
        "Traceback (most recent call last):",
        "ZeroDivisionError: division by zero",
    )


def test_each_event_is_one_json_object() -> None:
    first, second = map(json.loads, _events("json"))

    assert first.pop("time").endswith("Z")
    assert first == {"level": "info", "logger": "some.where", "message": "it works"}
    assert second["message"] == "it broke"
    assert "ZeroDivisionError" in second["traceback"]


def test_events_below_the_level_are_not_written() -> None:
    assert len(_events("json", "debug")) == 3
    assert len(_events("json", "error")) == 1


def test_events_name_their_worker() -> None:
    assert _events("text", worker=3)[0].endswith("Z info    [worker 3] it works")
    assert json.loads(_events("json", worker=0)[0])["worker"] == 0
