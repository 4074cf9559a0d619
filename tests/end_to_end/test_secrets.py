"""No output of the program has a secret, even at the highest log level, and no error has a backend's address."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from end_to_end.recording import raw
from support.fakes.engine import EngineConnection, FakeEngine, http_reply
from support.http_client import chat, send
from support.ports import free_port, unused_url
from support.program import Proxy, run_command
from support.waiting import eventually

PLANTED = "planted-7f3a9c1e"  # a part of every secret below
CLIENT, ENGINE, ADMIN, METRICS, OTHER, IN_FILE = (
    f"sk-{PLANTED}-{name}" for name in ("client", "engine", "admin", "metrics", "other", "file")
)
CHAT = "/v1/chat/completions"
PROMPT = {"messages": [{"role": "user", "content": f"my password is {PLANTED}-prompt"}], "max_tokens": 4}
PRIVATE = {"X-Password": f"{PLANTED}-field", "Cookie": f"session={PLANTED}-cookie"}
QUERY = f"?api_key={PLANTED}-query&token={PLANTED}-token"
MODELS = b'{"object":"list","data":[{"id":"tiny","object":"model","owned_by":"unknown-engine"}]}'
SETTINGS = {"ADMIN_KEY": ADMIN, "METRICS_KEY": METRICS, "BACKEND_API_KEY": ENGINE}
TALKATIVE = {"LOG_LEVEL": "debug", "MAX_REQUEST_BODY_BYTES": "2000", "HEALTH_DETAILS": "all", "BACKEND_HEADER": "true"}


async def engine_of_all_kinds(connection: EngineConnection) -> None:
    """Answers as the path says: correctly, with an error, not in HTTP, with half a stream, or not at all."""
    while True:
        request = await connection.request()
        path = request.split(b" ")[1].partition(b"?")[0]
        if path == b"/engine-error":
            connection.send(http_reply(b'{"error":"no"}', status=500))
        elif path == b"/no-http":
            connection.send(b"no HTTP at all\r\n\r\n")
        elif path == b"/broken":
            connection.send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            connection.send(b"a\r\ndata: {}\n\n\r\n")
            connection.reset()
            return
        elif path == b"/silent":
            await connection.ended
        elif path == b"/gone":
            connection.reset()
            return
        else:
            connection.send(http_reply(MODELS))


@dataclass
class Output:
    """All output of the program.

    Attributes:
        replies: raw replies by request, without those that an engine wrote.
        errors: the replies that are errors of the proxy.
        statuses: of all replies.
    """

    replies: dict[str, bytes] = field(default_factory=dict)
    errors: dict[str, bytes] = field(default_factory=dict)
    statuses: set[int] = field(default_factory=set)

    async def ask(self, url: str, line: str, body: object = None, **fields: str) -> None:
        """Send ``METHOD /path`` and record the reply."""
        method, target = line.split(" ", 1)
        content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {"Host": "proxy", "Connection": "close", "Content-Length": str(len(content)), **PRIVATE, **fields}
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in given.items())
        reply = await raw(url, f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode() + content)
        self.keep(f"{line} {fields}", reply)

    def keep(self, what: str, reply: bytes) -> None:
        self.replies[what] = reply
        status = int(reply[9:12]) if reply.startswith(b"HTTP/1.1 ") else 0
        self.statuses.add(status)
        if b'"request_id"' in reply or b"event: error" in reply:
            self.errors[what] = reply


async def everything(url: str, secret: str) -> Output:
    """Send all kinds of requests, with ``secret`` and without."""
    output = Output()
    key = {"Authorization": f"Bearer {secret}"}
    for path in (CHAT, "/v1/messages", "/engine-error", "/no-http", "/broken", "/silent", "/gone", "/sleep", "/x"):
        await output.ask(url, f"POST {path}{QUERY}", PROMPT, **key)
        await output.ask(url, f"GET {path}{QUERY}", None, X_Api_Key=secret)
    for wrong in (f"Bearer {OTHER}", f"Basic {OTHER}", f"Bearer {ADMIN}", f"{OTHER}"):
        for path in (CHAT, "/v1/messages", "/v1/models", "/admin/keys", "/metrics"):
            await output.ask(url, f"POST {path}{QUERY}", PROMPT, Authorization=wrong)
    for path in ("/", "/health", "/livez", "/readyz", "/openapi.json", "/docs", "/v1/models"):
        await output.ask(url, f"GET {path}{QUERY}", None, **key)
    for operator, path in ((ADMIN, "/admin/keys"), (ADMIN, "/admin/x"), (ADMIN, "/admin"), (METRICS, "/metrics")):
        await output.ask(url, f"GET {path}{QUERY}", None, Authorization=f"Bearer {operator}")
    await output.ask(url, f"POST {CHAT}", PROMPT | {"model": "other"}, **key)
    await output.ask(url, f"POST {CHAT}", json.dumps(PROMPT)[:-1].encode(), **key)
    await output.ask(url, f"POST {CHAT}{QUERY}", PLANTED.encode() * 200, **key)
    for number, malformed in enumerate(_malformed(secret)):
        output.keep(f"malformed {number}", await raw(url, malformed))
    return output


def _malformed(secret: str) -> Iterator[bytes]:
    host, key = "Host: a\r\n", f"Authorization: Bearer {secret}\r\n"
    yield f"POST {CHAT}{QUERY} HTTP/1.1\r\n{host}{key}{key}\r\n".encode()
    yield f"POST {CHAT}{QUERY} HTTP/1.1\r\n{key}\r\n".encode()
    yield f"POST {CHAT}{QUERY} HTTP/1.1\r\n{host}{key}X : {PLANTED}\r\n\r\n".encode()
    yield f"POST {CHAT}{QUERY} HTTP/1.1\n{host}{key}\n".encode()
    yield f"{PLANTED} {CHAT}{QUERY} HTTP/9.9\r\n{host}{key}\r\n".encode()
    yield f"GET {PLANTED} HTTP/1.1\r\n{host}{key}\r\n".encode()
    yield f"GET /?{PLANTED * 1000} HTTP/1.1\r\n{host}{key}\r\n".encode()
    yield f"GET / HTTP/1.1\r\n{host}{key}X-Secret: {PLANTED * 3000}\r\n\r\n".encode()
    yield f"POST {CHAT} HTTP/1.1\r\n{host}{key}Content-Length: {PLANTED}\r\n\r\n".encode()
    yield f"POST {CHAT} HTTP/1.1\r\n{host}{key}Expect: {PLANTED}\r\n\r\n".encode()
    yield f"POST {CHAT} HTTP/1.1\r\n{host}{key}Transfer-Encoding: chunked\r\n\r\n{PLANTED}\r\n".encode()
    yield f"GET / HTTP/1.1\r\n{host}X-Request-Id: {PLANTED} {PLANTED}\r\nConnection: close\r\n\r\n".encode()


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize("keys", [True, False])
async def test_program_writes_no_secret(tmp_path: Path, log_format: str, *, keys: bool) -> None:
    (tmp_path / "keys.yaml").write_text(f"keys: [{{name: file, secret: {IN_FILE}, models: [tiny]}}]")
    settings = TALKATIVE | SETTINGS | {"LOG_FORMAT": log_format, "BACKEND_TIMEOUT_SECONDS": "0.3"}
    if keys:
        settings |= {"API_KEYS": f"client:{CLIENT}", "API_KEYS_FILE": "keys.yaml"}
    dead = unused_url()
    async with FakeEngine(engine_of_all_kinds) as engine:
        with await asyncio.to_thread(Proxy, tmp_path, [engine.url, dead], **settings) as proxy:
            output = await everything(proxy.url, CLIENT)
            (tmp_path / "keys.yaml").write_text(f"keys: [{{name: file, secret: {IN_FILE}, {PLANTED}-x: 1}}]")
            if keys:
                await eventually(lambda: "keys.yaml" in proxy.events)

    written = {name: (tmp_path / name).read_bytes() for name in ("stdout", "stderr")}
    assert {200, 401, 403, 404, 400, 413, 414, 417, 431, 500, 502, 504, 505} - (
        {404} if keys else {403}
    ) <= output.statuses
    for what, content in (written | output.replies).items():
        assert PLANTED.encode() not in content, f"{what}: {content[:2000]!r}"
    addresses = re.compile(rb"127\.0\.0\.1|localhost|:%d|:%s" % (engine.port, dead.rpartition(":")[2].encode()))
    assert len(output.errors) > 20
    for what, content in output.errors.items():
        assert not addresses.search(content.partition(b"\r\n\r\n")[2]), f"{what}: {content!r}"
        if not content.startswith(b"HTTP/1.1 200"):
            assert b"x-backend" not in content, f"{what}: {content!r}"


async def test_error_for_a_dead_fleet_names_no_address(tmp_path: Path) -> None:
    port = free_port()
    with await asyncio.to_thread(Proxy, tmp_path, [f"http://127.0.0.1:{port}"], LOG_LEVEL="debug") as proxy:
        for path in (CHAT, "/v1/messages", "/v1/responses"):
            reply = await send(proxy.url, path, chat())
            assert reply.status == 503
            assert str(port).encode() not in reply.body
            assert "127.0.0.1" not in str(reply.headers)


# --- the command


@pytest.mark.parametrize("arguments", [("settings",), ("settings", "--json")])
def test_shown_settings_have_no_secrets(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    done = run_command(tmp_path, *arguments, **SETTINGS, API_KEYS=f"alice:{CLIENT},bob:{OTHER}")

    assert (done.returncode, done.stderr) == (0, "")
    assert "alice:***" in done.stdout
    assert PLANTED not in done.stdout


def test_invalid_settings_are_reported_without_secrets(tmp_path: Path) -> None:
    wrong = {
        "API_KEYS": f"a:{OTHER},a:{CLIENT}",
        "ADMIN_KEY": f"{ADMIN} {ADMIN}",
        "METRICS_KEY": f"{METRICS}é",
        "BACKEND_API_KEY": f"{ENGINE}\t{ENGINE}",
        "BACKENDS": f"http://user:{PLANTED}@127.0.0.1:1",
    }

    done = run_command(tmp_path, "serve", **wrong)

    assert (done.returncode, done.stdout) == (2, "")
    assert all(name in done.stderr for name in wrong)
    assert PLANTED not in done.stderr


@pytest.mark.parametrize(
    "content",
    [
        f"keys: [{{name: a, secret: {CLIENT}, {PLANTED}-x: 1}}]",
        f"keys: [{{name: a, secret: {CLIENT}}}, {{name: b, secret: {CLIENT}}}]",
        f"keys: {{\n{CLIENT}",
    ],
)
def test_invalid_key_file_is_one_line_without_secrets(tmp_path: Path, content: str) -> None:
    (tmp_path / "keys.yaml").write_text(content)
    settings = {"BACKENDS": "http://127.0.0.1:1", "PORT": "0", "API_KEYS_FILE": "keys.yaml", "LOG_LEVEL": "debug"}

    done = run_command(tmp_path, "serve", **settings)

    assert (done.returncode, done.stdout) == (2, "")
    [line] = [line for line in done.stderr.splitlines() if " debug " not in line]
    assert "keys.yaml" in line
    assert PLANTED not in done.stderr


def test_unreadable_line_of_dot_env_is_not_repeated(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        f"BACKENDS=http://127.0.0.1:1\nADMIN_KEY={PLANTED}\n{PLANTED} is it\nADMN_KEY={OTHER}\n"
    )

    done = run_command(tmp_path, "settings")

    assert PLANTED not in done.stdout + done.stderr
    assert "line 3" in done.stderr
