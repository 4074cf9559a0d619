"""Engines, the proxy in front of them, and NGINX in front of the proxy."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from end_to_end.conftest import start_proxy
from nginx.server import Nginx
from support.llama_server import LlamaServer
from support.program import Proxy

__all__ = ["start_proxy"]

StartNginx = Callable[..., Nginx]

# So that each connection to an engine belongs to a request, and no engine is ever busy.
PATIENT = {
    "METRICS_CACHE_TTL_SECONDS": "60",
    "MAX_ALLOWED_REQUEST_QUEUE": "1000",
    "MAX_ALLOWED_DEFERRED": "1000",
    "BACKEND_QUEUE_ALLOWANCE": "1000",
}


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like nginx/certs of an operator, with a certificate for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("certs")
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost "
        "-addext subjectAltName=IP:127.0.0.1 -keyout privkey.pem -out fullchain.pem"
    )
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def servers(slow_model: Path) -> Iterator[list[LlamaServer]]:
    """Two real engines with one thread for each request of a burst."""
    with ExitStack() as stack:
        options = ("--slots", "2", "--context", "8192", "--http-threads", "64")
        yield [stack.enter_context(LlamaServer(slow_model, *options)) for _ in range(2)]


@pytest.fixture(scope="session")
def proxy(tmp_path_factory: pytest.TempPathFactory, servers: list[LlamaServer]) -> Iterator[Proxy]:
    with Proxy(tmp_path_factory.mktemp("proxy"), [server.url for server in servers], **PATIENT) as running:
        yield running


@pytest.fixture(scope="session")
def nginx(tmp_path_factory: pytest.TempPathFactory, proxy: Proxy, certificates: Path) -> Iterator[Nginx]:
    """NGINX in front of ``proxy``, over HTTP and HTTPS, with the default settings."""
    with Nginx(tmp_path_factory.mktemp("nginx"), proxy.url, certificates=certificates) as running:
        yield running


@pytest.fixture
def start_nginx(tmp_path_factory: pytest.TempPathFactory, certificates: Path) -> Iterator[StartNginx]:
    """Starts another NGINX in front of base URLs, over HTTP and HTTPS, with further variables of ``.env``."""
    with ExitStack() as stack:

        def start(*proxies: str, **dot_env: str) -> Nginx:
            folder = tmp_path_factory.mktemp("nginx")
            return stack.enter_context(Nginx(folder, *proxies, certificates=certificates, dns=None, **dot_env))

        yield start


@pytest.fixture(params=[False, True], ids=["http", "https"])
def secure(request: pytest.FixtureRequest) -> bool:
    """Without and with TLS."""
    return bool(request.param)
