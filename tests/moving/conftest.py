"""Engines behind two proxies at a time: another one, and this one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.llama_server import LlamaServer
from support.program import Proxy

StartEngines = Callable[..., list[LlamaServer]]
StartProxy = Callable[..., Proxy]


@pytest.fixture
def start_engines(tiny_model: Path) -> Iterator[StartEngines]:
    """Starts a real llama.cpp server for each model name."""
    with ExitStack() as stack:

        def start(*names: str) -> list[LlamaServer]:
            options = ("--slots", "2", "--context", "8192", "--http-threads", "32", "--precise")
            return [stack.enter_context(LlamaServer(tiny_model, *options, "--alias", name)) for name in names]

        yield start


@pytest.fixture
def start_proxy(tmp_path: Path) -> Iterator[StartProxy]:
    """Starts this proxy with a fleet file of a page; further settings replace those of the file."""
    with ExitStack() as stack:

        def start(fleet_file: str, **settings: str) -> Proxy:
            folder = tmp_path / f"proxy-{len(list(tmp_path.iterdir()))}"
            folder.mkdir()
            (folder / "fleet.yaml").write_text(fleet_file)
            return stack.enter_context(Proxy(folder, [], CONFIG_FILE="fleet.yaml", **settings))

        yield start
