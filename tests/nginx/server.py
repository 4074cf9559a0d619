"""NGINX as the Compose files run it, without the container."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from support.http_client import Call, Reply
from support.ports import free_port
from test_compose import environment_of, services_of, source

__all__ = ["CAN_RESOLVE_AGAIN", "Nginx", "SecureCall", "check", "configure", "environment_after"]

_SOURCE = Path(__file__).parents[2] / "nginx"
_PROGRAM = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin") or "nginx"  # Debian's directory for daemons
_VERSION = subprocess.run([_PROGRAM, "-v"], capture_output=True, text=True, check=False).stderr
CAN_RESOLVE_AGAIN = tuple(map(int, re.findall(r"\d+", _VERSION)[:3])) >= (1, 27, 3)
"""Whether NGINX has the parameter ``resolve``; Debian 12's does not."""
_START_SECONDS = _STOP_SECONDS = 20.0
_WORKERS = 2
_LEAVES = "gracefully shutting down"  # a worker, in the error log
_USER = "user root;\n" if os.geteuid() == 0 else ""  # otherwise its workers could not enter the folder of a test
_MAIN = """\
# The image's own nginx.conf, but for what writes outside the folder.
worker_processes 2;
daemon off;
pid nginx.pid;
error_log error.log notice;
events { worker_connections 1024; }
http {
    default_type application/octet-stream;
    sendfile on;
    keepalive_timeout 65;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    include conf.d/*.conf;
}
"""


class SecureCall(Call):
    """The same over TLS.

    Args:
        trusted: the certificate of the server.
    """

    def __init__(
        self,
        url: str,
        target: str,
        body: object = None,
        *,
        trusted: Path,
        method: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(url, target, body, method=method, headers=headers)
        self._context = ssl.create_default_context(cafile=trusted)

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection(self._host, self._port, ssl=self._context)
        return self

    async def leave(self) -> None:
        """Close the connection at once: HTTP clients do not wait for the ``close_notify`` of the server."""
        self._writer.transport.abort()


class Nginx:
    """An NGINX process, which listens when the constructor returns.

    Args:
        folder: an empty folder, used as /etc/nginx.
        proxies: base URLs that the host name ``proxy`` resolves to. With ``dns``, NGINX uses the port of the only one
            and resolves its address.
        dns: port of a DNS server on 127.0.0.1; ``None`` resolves no name.
        certificates: a folder used as nginx/certs.
        dns: port of a DNS server on 127.0.0.1; without it, no name is resolved.
        dot_env: variables in ``.env``.

    Attributes:
        url: its HTTP base URL.
        https_url: its HTTPS base URL if it has a certificate.
    """

    def __init__(
        self, folder: Path, *proxies: str, certificates: Path | None = None, dns: int | None = None, **dot_env: str
    ) -> None:
        http_port, https_port = configure(folder, *proxies, certificates=certificates, dns=dns, **dot_env)
        self.url = f"http://127.0.0.1:{http_port}"
        self.https_url = f"https://127.0.0.1:{https_port}"
        self._folder = folder
        self._process = subprocess.Popen(_command(folder), stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            self._wait_for(http_port)
        except BaseException:
            self._kill()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._process.terminate()
            assert self._process.wait(_STOP_SECONDS) == 0, self.errors
            assert not re.search(r"\[(alert|crit|emerg)\]", self.errors), self.errors
        finally:
            self._kill()

    @property
    def errors(self) -> str:
        """The content of its error log."""
        return (self._folder / "error.log").read_text()

    @property
    def access_lines(self) -> list[str]:
        """The lines of its access log."""
        return (self._folder / "access.log").read_text().splitlines()

    def call(
        self,
        target: str,
        body: object = None,
        *,
        secure: bool = False,
        method: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> Call:
        """One request on its own connection, with TLS or without."""
        if not secure:
            return Call(self.url, target, body, method=method, headers=headers)
        trusted = self._folder / "certs" / "fullchain.pem"
        return SecureCall(self.https_url, target, body, trusted=trusted, method=method, headers=headers)

    async def send(
        self, target: str, body: object = None, *, secure: bool = False, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """Send one request and return the whole reply; arguments as for :meth:`call`."""
        async with self.call(target, body, secure=secure, headers=headers) as call:
            call.send()
            return await call.reply()

    def reconfigure(self, change: Callable[[str], str]) -> None:
        """Change its handling of requests, and wait until only workers with the new configuration accept connections.

        Raises:
            AssertionError: the change has no effect, or NGINX rejects it.
        """
        file = self._folder / "conf.d" / "proxy.locations"
        before = file.read_text()
        file.write_text(change(before))
        assert file.read_text() != before
        check(self._folder)
        seen = self.errors.count(_LEAVES)
        self._process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + _START_SECONDS
        while self.errors.count(_LEAVES) < seen + _WORKERS:
            assert time.monotonic() < deadline, f"it does not reload: {self.errors}"
            time.sleep(0.01)

    def drain(self) -> None:
        """Stop it as the image does: requests in flight may finish."""
        self._process.send_signal(signal.SIGQUIT)

    @property
    def exit_code(self) -> int | None:
        """``None`` while it runs."""
        return self._process.poll()

    def _wait_for(self, port: int) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not _answers(port):
            assert self._process.poll() is None, f"it ended: {self.errors}"
            assert time.monotonic() < deadline, f"it does not listen: {self.errors}"
            time.sleep(0.01)

    def _kill(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)  # including its workers
            self._process.wait()


def configure(
    folder: Path, *proxies: str, certificates: Path | None = None, dns: int | None = None, **dot_env: str
) -> tuple[int, int]:
    """Fill ``folder`` like /etc/nginx in the started image; returns the ports for HTTP and HTTPS.

    Raises:
        AssertionError: a part that is to be replaced is missing in the configuration.
    """
    http_port, https_port = free_port(), free_port()
    addresses = [urlsplit(proxy).netloc for proxy in proxies]
    if dns is not None:
        addresses = [f"proxy:{urlsplit(proxies[0]).port}"]
    dot_env["PROXIES"] = ",".join(addresses)
    here = {"/etc/nginx/": f"{folder}/"}
    replacements = {
        "default.conf": {"listen 80;": f"listen 127.0.0.1:{http_port};", **here},
        "https.conf": {"listen 443 ": f"listen 127.0.0.1:{https_port} ", **here},
        "proxy.locations": {"/dev/stdout": f"{folder}/access.log"},
        "40-https.sh": here,
    }
    variables = environment_of(services_of(source("cpu"), {"MODEL": "m", **dot_env})["nginx"], dot_env)
    for name in ("15-read-timeout.envsh", "16-proxies.envsh"):
        variables = environment_after(name, variables)
    assert variables["NGINX_ENTRYPOINT_LOCAL_RESOLVERS"]  # so that the image's 15-local-resolvers.envsh sets this one:
    variables = {**variables, "NGINX_LOCAL_RESOLVERS": f"127.0.0.1:{dns or 53}"}
    texts = {file.stem: _filled_in(file.read_text(), variables) for file in (_SOURCE / "templates").glob("*.template")}
    script = _SOURCE / "40-https.sh"
    texts[script.name] = script.read_text()
    assert texts.keys() == replacements.keys()

    (folder / "conf.d").mkdir()
    (folder / "nginx.conf").write_text(_USER + _MAIN)
    for name, text in texts.items():
        (folder / "conf.d" / name).write_text(_replaced(text, replacements[name]))
    if certificates:
        shutil.copytree(certificates, folder / "certs")
    entrypoint = (folder / "conf.d" / script.name).rename(folder / script.name)
    shutil.copymode(script, entrypoint)  # the image runs executable scripts and skips the others
    subprocess.run([entrypoint], check=True)
    return http_port, https_port


def check(folder: Path) -> str:
    """Check the configuration in ``folder`` with NGINX; returns its output.

    Raises:
        AssertionError: NGINX rejects it.
    """
    done = subprocess.run([*_command(folder), "-t"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def _command(folder: Path) -> list[str]:
    return [_PROGRAM, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]


def environment_after(script: str, variables: Mapping[str, str]) -> dict[str, str]:
    """As in the image: executable scripts are sourced, others are skipped."""
    assert os.access(_SOURCE / script, os.X_OK)
    sourcing = ["sh", "-euc", '. "$0"; env -0', str(_SOURCE / script)]
    shell = subprocess.run(
        sourcing, env={"PATH": os.environ["PATH"], **variables}, capture_output=True, check=True, text=True
    )
    after = dict(line.split("=", 1) for line in shell.stdout.split("\0") if line)
    return {name: value for name, value in after.items() if name in variables or name.startswith("PROXY_")}


def _filled_in(text: str, variables: Mapping[str, str]) -> str:
    """As envsubst does: ``$NAME`` and ``${NAME}`` of the given variables only, because NGINX has its own variables."""
    names = "|".join(variables)
    return re.sub(rf"\$(\{{)?({names})(?(1)\}}|\b)", lambda found: variables[found[2]], text)


def _replaced(text: str, replacements: Mapping[str, str]) -> str:
    for old, new in replacements.items():
        assert old in text, f"the configuration no longer has {old!r}"
        text = text.replace(old, new)
    return text


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except ConnectionRefusedError:
        return False
    return True
