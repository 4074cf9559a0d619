"""Fleets of real servers, and proxies in front of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.llama_server import LlamaServer
from support.program import Proxy

StartServers = Callable[..., list[LlamaServer]]
StartProxy = Callable[..., Proxy]


@pytest.fixture
def start_servers() -> Iterator[StartServers]:
    """Starts ``count`` servers with a model and options of ``LlamaServer``."""
    with ExitStack() as stack:
        yield lambda count, model, *options: [stack.enter_context(LlamaServer(model, *options)) for _ in range(count)]


@pytest.fixture
def two_servers(start_servers: StartServers, tiny_model: Path) -> list[LlamaServer]:
    return start_servers(2, tiny_model)


@pytest.fixture
def two_slow_servers(start_servers: StartServers, slow_model: Path) -> list[LlamaServer]:
    # Each queued request occupies one thread. The remaining threads answer polls.
    return start_servers(2, slow_model, "--slots", "2", "--context", "8192", "--http-threads", "64")


@pytest.fixture
def start_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartProxy]:
    """Starts the program in front of servers or base URLs, with further settings."""
    with ExitStack() as stack:

        def start(*backends: LlamaServer | str, **settings: str) -> Proxy:
            urls = [backend if isinstance(backend, str) else backend.url for backend in backends]
            return stack.enter_context(Proxy(tmp_path_factory.mktemp("proxy"), urls, **settings))

        yield start


@pytest.fixture(scope="package")
def shared_server(tiny_model: Path) -> Iterator[LlamaServer]:
    """For tests that do not change its state."""
    with LlamaServer(tiny_model, "--slots", "2", "--context", "8192") as server:
        yield server


@pytest.fixture(scope="package")
def shared_proxy(tmp_path_factory: pytest.TempPathFactory, shared_server: LlamaServer) -> Iterator[Proxy]:
    """In front of ``shared_server``, with the default settings."""
    with Proxy(tmp_path_factory.mktemp("proxy"), [shared_server.url]) as proxy:
        yield proxy
