"""The proxies whose manners under faults are compared, each as its own documentation would set it up for that."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from targets import free_port

__all__ = ["DEFAULT_TARGETS", "TARGETS", "Site", "started"]

_START_SECONDS = 60.0
_BODY = b'{"model":"m","messages":[{"role":"user","content":"Hello"}]}'
_FIRST_REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
)

_HAPROXY = """
defaults
  mode http
  option abortonclose
  timeout connect 5s
  timeout client 600s
  timeout server 600s
frontend clients
  bind 127.0.0.1:@PORT@
  default_backend engines
backend engines
  balance leastconn
  option httpchk GET /health
  option redispatch
  retries 3
  retry-on conn-failure empty-response 503
  default-server check inter 2s fall 2 rise 1 observe layer7 error-limit 10 on-error mark-down
  default-server on-marked-down shutdown-sessions
"""

_NGINX = """
worker_processes 1;
daemon off;
error_log stderr crit;
pid nginx.pid;
events { worker_connections 8192; }
http {
  access_log off;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  upstream engines {
    least_conn;
    @SERVERS@
    keepalive 256;
  }
  server {
    listen 127.0.0.1:@PORT@ backlog=4096;
    location / {
      proxy_pass http://engines;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_next_upstream error timeout http_502 http_503 http_504 non_idempotent;
    }
  }
}
"""


@dataclass(frozen=True, slots=True)
class Site:
    """Where a proxy is to run.

    Attributes:
        folder: an empty one for its files.
        engines: ports of the engines on 127.0.0.1.
    """

    folder: Path
    port: int
    engines: tuple[int, ...]

    @property
    def engine_urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self.engines]


@dataclass(frozen=True, slots=True)
class Target:
    """A kind of proxy.

    Attributes:
        settings: for its environment.
        settle_seconds: from its first answer until it knows all engines as it will know them from then on.
    """

    program: str
    command: Callable[[Site], list[str]]
    settings: tuple[tuple[str, str], ...] = ()
    settle_seconds: float = 1.0

    @property
    def is_installed(self) -> bool:
        return shutil.which(self.program) is not None


def _ours(site: Site) -> list[str]:
    backends = ["--port", str(site.port), "--backends", ",".join(site.engine_urls)]
    return [sys.executable, "-m", "inference_engine_proxy_server", "serve", *backends]


def _haproxy(site: Site) -> list[str]:
    servers = [f"  server engine{number} 127.0.0.1:{port}\n" for number, port in enumerate(site.engines)]
    file = site.folder / "haproxy.cfg"
    file.write_text(_HAPROXY.replace("@PORT@", str(site.port)) + "".join(servers))
    return ["haproxy", "-db", "-f", str(file)]


def _nginx(site: Site) -> list[str]:
    servers = " ".join(f"server 127.0.0.1:{port};" for port in site.engines)
    file = site.folder / "nginx.conf"
    file.write_text(_NGINX.replace("@PORT@", str(site.port)).replace("@SERVERS@", servers))
    return ["nginx", "-p", str(site.folder), "-c", str(file), "-e", "stderr"]


def _router(site: Site) -> list[str]:
    """Options that vllm-router and smg, its relative, have in common; their default policy looks at prompts first."""
    listen = ["--host", "127.0.0.1", "--port", str(site.port)]
    listen += ["--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port())]
    return [*listen, "--policy", "power_of_two", "--worker-urls", *site.engine_urls]


TARGETS = {
    "inference-proxy": Target(sys.executable, _ours, (("METRICS_CACHE_TTL_SECONDS", "1"),)),
    "inference-proxy-defaults": Target(sys.executable, _ours),
    "haproxy-tuned": Target("haproxy", _haproxy),
    "nginx-nonidem": Target("nginx", _nginx),
    "vllm-router": Target("vllm-router", lambda site: ["vllm-router", *_router(site)]),
    # It asks for loads every 10 s; the first round misses some engines, which get no traffic, or all, until the next.
    "smg": Target("smg", lambda site: ["smg", "launch", *_router(site)], settle_seconds=12.0),
}
DEFAULT_TARGETS = tuple(name for name in TARGETS if name != "inference-proxy-defaults")


@contextlib.asynccontextmanager
async def started(target: Target, site: Site) -> AsyncIterator[None]:
    """The proxy, ready: it has answered a request.

    Raises:
        RuntimeError: it did not start; the message has the end of its log.
    """
    log = site.folder / "log"
    process = _start(target, site, log)
    try:
        if not await _answers(process, site.port):
            raise RuntimeError(f"did not start: {_tail(log)}")
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with its workers; nothing that it could save is wanted
        process.wait()


def _start(target: Target, site: Site, log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            target.command(site),
            cwd=site.folder,
            env=dict(os.environ) | dict(target.settings),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C is for the benchmark alone, which ends all others in order
        )


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:]


async def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    """Waits until the proxy answers a request; tells whether it did."""
    deadline = time.monotonic() + _START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError):  # a timeout is one, too
            async with asyncio.timeout(5):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                try:
                    writer.write(_FIRST_REQUEST)
                    if b" 200 " in await reader.readline():
                        return True
                finally:
                    writer.close()
        await asyncio.sleep(0.1)
    return False
