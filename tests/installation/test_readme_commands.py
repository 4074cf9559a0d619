"""The commands of the README, run verbatim on a copy of the project with its own environments."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from support.checkout import PIP_CACHE, Shell, copied_project
from support.http_client import send
from support.llama_server import LlamaServer
from support.readme import ASK, COPY_SETTINGS, INSTALL, RUN, SERVE, blocks
from support.waiting import eventually

ROOT = Path(__file__).parents[2]
ADDING_AN_ENGINE = (ROOT / "docs" / "adding-an-engine.md").read_text()


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with copied_project(tmp_path_factory.mktemp("checkout")) as folder:
        yield folder


@pytest.fixture
def checkout(copy: Path) -> Path:
    (copy / ".env").unlink(missing_ok=True)
    return copy


async def test_quick_start_talks_to_a_real_model(checkout: Path, free_port: int) -> None:
    # The demo stores its model there; pip's cache stays, otherwise everything would be downloaded again.
    caches = {"XDG_CACHE_HOME": str(checkout / "cache"), "PIP_CACHE_DIR": str(PIP_CACHE)}
    shell = Shell(checkout, PORT=str(free_port), **caches)
    address = f"http://127.0.0.1:{free_port}"
    with shell.running(RUN, until="curl -N") as printed:
        assert address in printed
        answer = shell.run(ASK.replace("http://127.0.0.1:8888", address))
    assert answer.count('"content":"') > 10
    assert answer.endswith("data: [DONE]\n\n")


async def test_dot_env_names_engines_and_a_third_one_can_be_added(
    checkout: Path, free_port: int, tiny_model: Path
) -> None:
    shell = Shell(checkout)
    shell.run(COPY_SETTINGS)
    dot_env = checkout / ".env"
    dot_env.write_text(dot_env.read_text().replace("PORT=8888", f"PORT={free_port}"))
    address = f"http://127.0.0.1:{free_port}"
    with LlamaServer(tiny_model) as one, LlamaServer(tiny_model) as two, LlamaServer(tiny_model) as three:
        for engines in ([one, two], [one, two, three]):
            urls = [engine.url for engine in engines]
            changed = re.sub("(?m)^(# )?BACKENDS=.*$", f"BACKENDS={','.join(urls)}", dot_env.read_text())
            dot_env.write_text(changed)
            with shell.running(RUN, until=f"listening on {address}"):
                await eventually_available(address, urls)


async def test_engine_of_another_package_is_discovered(checkout: Path, free_port: int, tiny_model: Path) -> None:
    environment = checkout / ".venv-user"
    Shell(checkout).run(f"{sys.executable} -m venv {environment}")
    package = checkout / "my-engine"
    package.mkdir()
    (package / "my_engine.py").write_text(blocks(ADDING_AN_ENGINE, "python")[0])
    (package / "pyproject.toml").write_text(blocks(ADDING_AN_ENGINE, "toml")[0])
    path = f"{environment / 'bin'}:{os.environ['PATH']}"
    shell = Shell(checkout, PATH=path, PORT=str(free_port))
    shell.run(INSTALL)
    Shell(package, PATH=path).run(INSTALL)

    address = f"http://127.0.0.1:{free_port}"
    with LlamaServer(tiny_model) as known, novel_engine() as novel:
        command = SERVE.replace("http://llm-1:8080", known.url).replace("http://llm-2:8080", novel)
        with shell.running(command, until=f"listening on {address}"):
            await eventually_available(address, [known.url, novel])
            health = (await send(address, "/health")).json
    loads = {detail["backend"]: detail["metrics"]["requests_processing"] for detail in health["details"]}
    assert loads == {known.url: 0.0, novel: 4.0}


async def eventually_available(address: str, urls: list[str]) -> None:
    async def all_are() -> bool:
        return bool((await send(address, "/health")).json["available_backends"] == urls)

    await eventually(all_are)


class _NovelEngine(BaseHTTPRequestHandler):
    """An unknown engine, as in docs/adding-an-engine.md."""

    def do_GET(self) -> None:
        body = {"/v1/models": b'{"data": [{"id": "m", "owned_by": "my-engine"}]}', "/status": b"4"}.get(self.path, b"")
        self.send_response(200 if body else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def novel_engine() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _NovelEngine) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()
