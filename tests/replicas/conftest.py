"""Four real engines, four replicas of the proxy in front of them, and NGINX in front of those."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from nginx.server import Nginx
from support.llama_server import LlamaServer
from support.program import Proxy

Report = Callable[[str], None]

ENGINES = REPLICAS = 4
_FIGURES = pytest.StashKey[list[str]]()
SERVER = ("--slots", "4", "--context", "16384", "--http-threads", "64")


@dataclass(slots=True)
class Site:
    """All parts; those that a test has replaced, too.

    Attributes:
        replicas: by the address that NGINX uses.
    """

    folder: Path
    model: Path
    engines: list[LlamaServer]
    replicas: dict[str, Proxy]
    nginx: Nginx
    stack: ExitStack

    def restart(self, address: str) -> None:
        """Start a replica that has ended again, at the same address."""
        self.replicas[address] = _replica(self.stack, self.folder, self.engines, PORT=address.rpartition(":")[2])

    def restart_engine(self, ended: LlamaServer) -> None:
        server = self.stack.enter_context(LlamaServer(self.model, *SERVER, port=ended.port))
        self.engines[self.engines.index(ended)] = server

    def addresses_tried(self) -> dict[str, list[str]]:
        """The replicas that NGINX sent each request to, by request id."""
        tried = {}
        for line in self.nginx.access_lines:
            request_id, _, addresses = line.rpartition('" ')[2].split(" ", 3)[3].partition(" ")
            tried[request_id] = addresses.split(", ")
        return tried

    def processing(self) -> float:
        """Number of requests that the engines report as running."""
        return sum(engine.metrics()["llamacpp:requests_processing"] for engine in self.engines)


def _replica(stack: ExitStack, folder: Path, engines: list[LlamaServer], **settings: str) -> Proxy:
    number = len(list(folder.iterdir()))
    urls = [engine.url for engine in engines]
    replica = Proxy(folder / f"replica-{number}", urls, **settings)
    stack.callback(replica.kill)  # tests kill some of them
    return replica


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Adds a line to the figures that are printed after the tests."""
    return request.config.stash.setdefault(_FIGURES, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the figures of docs/high-availability.md."""
    if lines := config.stash.get(_FIGURES, []):
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture
def site(tmp_path: Path, slow_model: Path) -> Iterator[Site]:
    with ExitStack() as stack:
        engines = [stack.enter_context(LlamaServer(slow_model, *SERVER)) for _ in range(ENGINES)]
        started = [_replica(stack, tmp_path, engines) for _ in range(REPLICAS)]
        replicas = {urlsplit(replica.url).netloc: replica for replica in started}
        folder = tmp_path / "nginx"
        folder.mkdir()
        nginx = stack.enter_context(Nginx(folder, *(replica.url for replica in started)))
        yield Site(tmp_path, slow_model, engines, replicas, nginx, stack)
