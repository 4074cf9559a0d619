"""The engine of docs/adding-an-engine.md, in a package of its own: found, balanced by its figures, and named."""

from __future__ import annotations

import json
import os
import tomllib
from contextlib import AsyncExitStack
from pathlib import Path

from support.engine import Engine
from support.fakes.engine import EngineConnection, http_reply
from support.http_client import Call, chat
from support.program import Proxy, fresh_program
from support.readme import blocks

PAGE = (Path(__file__).parents[2] / "docs" / "adding-an-engine.md").read_text()
ACME = PAGE.partition("## An engine with a status page")[2].partition("\n## ")[0]


class Acme(Engine):
    """A server that does what the quoted documents say.

    Attributes:
        status: its answer to ``GET /status``.
    """

    def __init__(self, active: int) -> None:
        super().__init__(owner="acme")
        self.status: dict[str, object] = {"state": "ready", "active": active, "queued": 1, "slots": 4}
        self.pages["/status"] = self._tell

    async def _tell(self, connection: EngineConnection) -> None:
        connection.send(http_reply(json.dumps(self.status).encode()))


def install_into(folder: Path) -> None:
    """Install the package of the page into ``folder``, as pip would."""
    (source,), (configuration,) = blocks(ACME, "python"), blocks(ACME, "toml")
    described = tomllib.loads(configuration)
    name, version = described["project"]["name"], described["project"]["version"]
    (module,) = described["tool"]["setuptools"]["py-modules"]
    about = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    about.mkdir(parents=True)
    (folder / f"{module}.py").write_text(source)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (about / "entry_points.txt").write_text(
        "".join(
            f"[{group}]\n" + "".join(f"{entry} = {target}\n" for entry, target in entries.items())
            for group, entries in described["project"]["entry-points"].items()
        )
    )


async def answering_backends(proxy: Proxy, count: int) -> set[str]:
    """The backends of ``count`` requests that are open at once."""
    async with AsyncExitStack() as stack:
        calls = [await stack.enter_async_context(Call(proxy.url, "/v1/chat/completions", chat())) for _ in range(count)]
        for call in calls:
            call.send()
        return {(await call.reply()).headers["x-backend"] for call in calls}


async def test_an_engine_written_from_the_docs_is_identified_balanced_and_named(tmp_path: Path) -> None:
    install_into(tmp_path / "installed")
    path = os.pathsep.join(filter(None, (str(tmp_path / "installed"), os.environ.get("PYTHONPATH"))))
    polls = {"METRICS_CACHE_TTL_SECONDS": "0.5", "PYTHONPATH": path}
    async with Acme(active=30) as busy, Acme(active=0) as idle:
        async with fresh_program(tmp_path / "proxy", busy, idle, **polls) as proxy:
            await proxy.becomes(busy, "up")
            await proxy.becomes(idle, "up")
            details = await proxy.details()
            assert {one["engine"] for one in details.values()} == {"acme"}
            assert [details[one.url]["processing"] for one in (busy, idle)] == [31, 1]
            assert await answering_backends(proxy, 20) == {idle.url}

            idle.status["state"] = "loading"
            await proxy.becomes(idle, "busy")
            assert await answering_backends(proxy, 3) == {busy.url}
