"""Two real servers with the model of the page, and the proxy in front of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clients.recipes import MODEL
from support.llama_server import LlamaServer
from support.program import Proxy


@pytest.fixture(scope="package")
def servers(tiny_model: Path) -> Iterator[list[LlamaServer]]:
    with LlamaServer(tiny_model, "--alias", MODEL) as first, LlamaServer(tiny_model, "--alias", MODEL) as second:
        yield [first, second]


@pytest.fixture(scope="package")
def proxy(tmp_path_factory: pytest.TempPathFactory, servers: list[LlamaServer]) -> Iterator[Proxy]:
    with Proxy(tmp_path_factory.mktemp("proxy"), [server.url for server in servers]) as proxy:
        yield proxy


@pytest.fixture
def lonely_proxy(tmp_path_factory: pytest.TempPathFactory, free_port: int) -> Iterator[Proxy]:
    """A proxy in front of ``free_port``, where no server listens."""
    with Proxy(tmp_path_factory.mktemp("proxy"), [f"http://127.0.0.1:{free_port}"]) as proxy:
        yield proxy
