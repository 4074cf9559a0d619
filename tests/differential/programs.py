"""Backends that are external programs, each in front of a recorder."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from corpus.conftest import Recorder, answers_yes
from differential.observed import REFUSED, Backend, Observed, from_raw
from support.fakes.front import until
from support.ports import free_port

__all__ = ["haproxy_backend", "nginx_backend", "recorder_backend"]

_PATH = f"{os.environ['PATH']}:/usr/sbin"  # Debian's directory for daemons
_STOP_SECONDS = 20.0
_NGINX = """\
daemon off;
{user}
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
    log_format seen escape=json '{{"method":"$request_method","target":"$request_uri","body":"$request_body",'
                                '"status":"$status"}}';
    access_log {folder}/access.log seen;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    client_body_buffer_size 256k; # a body in a file is not logged
    client_body_in_single_buffer on;
    large_client_header_buffers 4 64k;
    keepalive_requests 100000;
    ignore_invalid_headers off;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass {recorder};
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }}
    }}
}}
"""
_HAPROXY = """\
global
    log stdout format raw local0
    tune.bufsize 131072
    tune.http.maxhdr 256
defaults
    mode http
    log global
    log-format "%ST %{{+Q}}r"
    option dontlognull # whether it listens is found out by connecting
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend seen
    bind 127.0.0.1:{port}
    default_backend recorder
backend recorder
    server recorder {recorder}
"""


@asynccontextmanager
async def recorder_backend() -> AsyncIterator[Backend]:
    """The reference: reads forwarded requests with Content-Length as their only framing."""
    async with Recorder(answers_yes) as recorder:
        yield Backend("recorder", recorder.url, lambda: [from_raw(request) for request in recorder.requests])


@asynccontextmanager
async def nginx_backend(folder: Path) -> AsyncIterator[Backend]:
    """NGINX; its access log has the requests it understood and refused."""
    async with Recorder(answers_yes) as recorder:
        port = free_port()
        user = "user root;" if os.geteuid() == 0 else ""  # otherwise its worker could not enter the folder of a test
        configuration = folder / "nginx.conf"
        configuration.write_text(_NGINX.format(folder=folder, port=port, recorder=recorder.url, user=user))
        command = [_found("nginx"), "-p", str(folder), "-c", str(configuration), "-e", str(folder / "error.log")]
        log = folder / "access.log"
        async with _running(command, folder, port):
            yield Backend("nginx", f"http://127.0.0.1:{port}", _growing(log, _from_nginx))


@asynccontextmanager
async def haproxy_backend(folder: Path) -> AsyncIterator[Backend]:
    """HAProxy; understood requests are those it forwarded, refused ones are in its log."""
    async with Recorder(answers_yes) as recorder:
        port = free_port()
        configuration = folder / "haproxy.cfg"
        configuration.write_text(_HAPROXY.format(port=port, recorder=recorder.url.removeprefix("http://")))
        async with _running([_found("haproxy"), "-f", str(configuration)], folder, port):
            refused = _growing(folder / "stdout", lambda line: REFUSED if b"<BADREQ>" in line else None)
            yield Backend(
                "haproxy", f"http://127.0.0.1:{port}", lambda: [*map(from_raw, recorder.requests), *refused()]
            )


def _from_nginx(line: bytes) -> Observed:
    seen = json.loads(line.decode("latin-1"))
    if seen["status"] in ("400", "405", "414", "494"):
        return REFUSED
    return Observed.of(seen["method"], seen["target"].encode("latin-1"), seen["body"].encode("latin-1"))


def _growing(file: Path, read: Callable[[bytes], Observed | None]) -> Callable[[], list[Observed]]:
    """The complete lines of a growing file."""
    known: list[Observed] = []
    position = 0

    def observed() -> list[Observed]:
        nonlocal position
        with file.open("rb") as log:
            log.seek(position)
            lines = log.read().rpartition(b"\n")
        position += len(lines[0]) + len(lines[1])
        known.extend(found for line in lines[0].splitlines() if (found := read(line)) is not None)
        return known

    return observed


@asynccontextmanager
async def _running(command: list[str], folder: Path, port: int) -> AsyncIterator[None]:
    with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
        process = await asyncio.create_subprocess_exec(
            *command, cwd=folder, stdin=asyncio.subprocess.DEVNULL, stdout=stdout, stderr=stderr
        )
    try:
        await until(lambda: process.returncode is not None or _answers(port))
        assert process.returncode is None, (folder / "stderr").read_text()
        yield
    finally:
        if process.returncode is None:
            process.terminate()
        async with asyncio.timeout(_STOP_SECONDS):
            await process.wait()


def _found(program: str) -> str:
    path = shutil.which(program, path=_PATH)
    assert path, f"needs {program}: try 'apt install {program}'"
    return path


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return False
    return True
