"""The commands of docs/start.md, in their order, on a copy of the project with its own environment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from support.checkout import PIP_CACHE, Shell, copied_project
from support.documents import ROOT
from support.http_client import send
from support.llama_server import LlamaServer
from support.readme import RUN, commands
from support.waiting import eventually

PAGE = (ROOT / "docs" / "start.md").read_text()
WAYS_TO_START = {RUN: "curl -N", "serve": "listening on"}
"""The end of a command that runs until Ctrl-C, and what it prints when it is ready."""


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "checkout").mkdir()
    with copied_project(tmp_path / "checkout") as folder:
        yield folder


@pytest.fixture
def engines(tiny_model: Path) -> Iterator[list[LlamaServer]]:
    """What the page starts with llama-server."""
    with ExitStack() as stack:
        options = ("--alias", "my-model", "--slots", "4")
        yield [stack.enter_context(LlamaServer(tiny_model, *options)) for _ in range(2)]


async def test_the_commands_work_in_their_order(checkout: Path, engines: list[LlamaServer], free_port: int) -> None:
    # The demo stores its model there; pip's cache stays, otherwise everything would be downloaded again.
    caches = {"XDG_CACHE_HOME": str(checkout / "cache"), "PIP_CACHE_DIR": str(PIP_CACHE)}
    (checkout / ".curlrc").write_text("fail\n")  # an error status is a failure
    shell = Shell(checkout, PORT=str(free_port), CURL_HOME=str(checkout), **caches)
    here = {"127.0.0.1:8888": f"127.0.0.1:{free_port}"}
    for port, engine in zip(("8081", "8082"), engines, strict=True):
        here[f"http://127.0.0.1:{port}"] = engine.url

    outputs: dict[str, str] = {}
    with ExitStack() as running:
        for command in commands(PAGE):
            typed = command
            for old, new in here.items():
                typed = typed.replace(old, new)
            ready = next((text for end, text in WAYS_TO_START.items() if end in command), None)
            if ready is None:
                outputs[command] = shell.run(typed)
            else:
                running.close()  # the reader presses Ctrl-C
                running.enter_context(shell.running(typed, until=ready))

    told = iter(outputs.items())
    asked_demo = next(output for command, output in told if command.startswith("curl -N"))
    assert asked_demo.count('"content":"') > 10
    assert "2 backends" in next(output for command, output in told if command.endswith("top --once"))
    assert all(engine.url in next(output for command, output in told if "/health" in command) for engine in engines[:1])
    assert '"my-model"' in next(output for command, output in told if "/v1/models" in command)
    assert '"content"' in next(output for command, output in told if "What is a computer network" in command)
    assert "2 backends examined" in next(output for command, output in told if "doctor" in command)
    assert ".env" in next(output for command, output in told if command.endswith("settings"))

    with shell.running(RUN, until="listening on"):  # with .env, as the page says
        address = f"http://127.0.0.1:{free_port}"

        async def has_both() -> bool:
            return set((await send(address, "/health")).json["available_backends"]) == {one.url for one in engines}

        await eventually(has_both)
