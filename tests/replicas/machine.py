"""A machine with a replica of the proxy, keepalived and perhaps NGINX, as deploy/high-availability sets it up."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path

from replicas.machines import ADDRESS, FIRST, SECOND, Segment
from support.program import FreshProxy

__all__ = ["Machine"]

_SHIPPED = Path(__file__).parents[2] / "deploy" / "high-availability"
_PROXY_PORT = 8888
_NGINX_CONF = """\
{user}worker_processes 2;
daemon off;
pid nginx.pid;
events {{ worker_connections 1024; }}
http {{
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    include conf.d/*.conf;
}}
"""


class Machine:
    """One of the two machines; everything runs when the constructor returns.

    Args:
        stack: ends its processes.
        own: its address.
        engines: base URLs.
        has_nginx: whether NGINX is in front of both replicas; else the shared address leads to the proxy itself.

    Attributes:
        url: the base URL at the shared address; the same for both machines.
    """

    def __init__(
        self, stack: ExitStack, segment: Segment, folder: Path, own: str, engines: list[str], *, has_nginx: bool
    ) -> None:
        folder.mkdir()
        self.own, self.peer = own, SECOND if own == FIRST else FIRST
        self.has_nginx = has_nginx
        self.url = f"http://{ADDRESS}:{80 if has_nginx else _PROXY_PORT}"
        self._stack = stack
        self._segment = segment
        self._folder = folder
        self._engines = engines
        # Not in the folder of the test, which only its owner may enter: keepalived runs the check as another user.
        self._public = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="keepalived-")))
        self._public.chmod(0o755)
        self.start_proxy()
        if has_nginx:
            self.start_nginx()
        self.start_keepalived()

    def start_proxy(self) -> None:
        with self._segment.at(self.own):
            folder = self._folder / f"proxy-{len(list(self._folder.iterdir()))}"
            settings = {"HOST": "0.0.0.0", "PORT": str(_PROXY_PORT), "TRUSTED_PROXIES": "private"}  # noqa: S104
            self.proxy = FreshProxy(folder, self._engines, DRAIN_GRACE_SECONDS="5", **settings)
        self._stack.callback(self.proxy.kill)

    def start_nginx(self) -> None:
        folder = self._folder / "nginx"
        folder.mkdir(exist_ok=True)
        variables = {
            "PATH": os.environ["PATH"],
            "PROXIES": f"{FIRST}:{_PROXY_PORT},{SECOND}:{_PROXY_PORT}",
            "ACCESS_LOG_FILE": str(folder / "access.log"),
        }
        subprocess.run([_SHIPPED / "nginx.sh", folder], env=variables, check=True)
        user = "user root;\n" if os.geteuid() == 0 else ""
        (folder / "nginx.conf").write_text(_NGINX_CONF.format(user=user))
        self.nginx = self._run("nginx", "-p", folder, "-c", folder / "nginx.conf", "-e", folder / "error.log")

    def start_keepalived(self) -> None:
        check = shutil.copy(_SHIPPED / "check-address", self._public)
        text = (_SHIPPED / "keepalived.conf").read_text()
        values = {"$ADDRESS": f"{ADDRESS}/24", "$OWN": self.own, "$PEER": self.peer}
        if not self.has_nginx:
            values["$CHECK"] = f"http://127.0.0.1:{_PROXY_PORT}/readyz http://${{PEER}}:{_PROXY_PORT}/readyz"
        lines = [
            f"{name}={values[name]}" if (name := line.partition("=")[0]) in values else line
            for line in text.splitlines()
        ]
        file = self._folder / "keepalived.conf"
        file.write_text("\n".join(lines).replace("/etc/keepalived/check-address", str(check)) + "\n")
        pid_files = [part for option in "prcb" for part in (f"-{option}", self._folder / f"keepalived-{option}.pid")]
        self.keepalived = self._run("keepalived", "-n", "-l", "-D", "-G", "-f", file, *pid_files)

    def kill_keepalived(self) -> None:
        self.keepalived.kill()
        self.keepalived.wait()

    def kill_nginx(self) -> None:
        os.killpg(self.nginx.pid, signal.SIGKILL)
        self.nginx.wait()

    def _run(self, *command: str | Path) -> subprocess.Popen[bytes]:
        with self._segment.at(self.own), (self._folder / f"{command[0]}.log").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        self._stack.callback(_end, process)
        return process


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()  # keepalived removes the address, NGINX its workers
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
