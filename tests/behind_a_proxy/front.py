"""NGINX and Caddy with the configurations of docs/behind-a-proxy.md."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from support.ports import free_port
from support.readme import blocks

__all__ = ["FRONTS", "front"]

_PAGE = (Path(__file__).parents[2] / "docs" / "behind-a-proxy.md").read_text()
_DAEMONS = f"{os.environ['PATH']}:/usr/sbin"  # Debian's directory for daemons
_START_SECONDS = 30.0
_NGINX = """\
daemon off;
pid nginx.pid;
error_log error.log;
events {{ }}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
{configuration}
}}
"""
_CADDY = """\
{{
	admin off
	auto_https off
}}
{configuration}
"""


def _nginx(folder: Path, port: int, proxy: str) -> list[str]:
    (configuration,) = blocks(_PAGE, "nginx")
    configuration = _replaced(configuration, {"listen 80;": f"listen 127.0.0.1:{port};", "127.0.0.1:8888": proxy})
    user = "user root;\n" if os.geteuid() == 0 else ""  # otherwise its workers could not enter the folder of a test
    (folder / "nginx.conf").write_text(user + _NGINX.format(configuration=configuration))
    return [_program("nginx"), "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]


def _caddy(folder: Path, port: int, proxy: str) -> list[str]:
    (configuration,) = blocks(_PAGE, "caddy")
    address = f"http://127.0.0.1:{port} {{"
    configuration = _replaced(configuration, {"llm.example.com {": address, "127.0.0.1:8888": proxy})
    (folder / "Caddyfile").write_text(_CADDY.format(configuration=configuration))
    return [_program("caddy"), "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


FRONTS = {"NGINX": _nginx, "Caddy": _caddy}


@contextmanager
def front(name: str, folder: Path, proxy: str) -> Iterator[str]:
    """Start a program of ``FRONTS`` in front of a base URL; yields its own base URL.

    Args:
        folder: an empty folder.
    """
    port = free_port()
    command = FRONTS[name](folder, port, urlsplit(proxy).netloc)
    home: Mapping[str, str] = {"PATH": _DAEMONS, "HOME": str(folder)}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=home, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + _START_SECONDS
        while not _listens(port):
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, (folder / "log").read_text()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _program(name: str) -> str:
    found = shutil.which(name, path=_DAEMONS)
    assert found is not None, f"needs {name}"
    return found


def _replaced(text: str, replacements: Mapping[str, str]) -> str:
    for old, new in replacements.items():
        assert old in text, f"the page no longer has {old!r}"
        text = text.replace(old, new)
    return text


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
