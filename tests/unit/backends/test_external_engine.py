"""An engine in a third-party package, which works without any edit in this project."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import inference_engine_proxy_server

ENGINE = """
from inference_engine_proxy_server.backends.base import BaseBackend


class NovelBackend(BaseBackend):
    providers = ("novel-labs",)

    @classmethod
    async def recognizes(cls, probe):
        return "novel" in await probe.json("/status")

    async def fetch_metrics(self):
        reply = await self.get("/queue")
        return float(reply.body), reply.status == 200
"""

# Runs in its own process, so that the package is found because it is installed and not because a test imported it.
USES_IT = """
import asyncio, json
from inference_engine_proxy_server.backends.base import Probe, Reply, Thresholds
from inference_engine_proxy_server.backends.registry import discover_engines, identify

async def get(path):
    return {
        "/status": Reply(200, b'{"novel": 1}'),
        "/v1/models": Reply(200, b'{"data": [{"id": "m", "owned_by": "novel-labs"}]}'),
        "/queue": Reply(200, b"4"),
    }[path]

async def main():
    engines = discover_engines()
    engine = await identify(engines, Probe(get))

    async def get_without_owner(path):
        return Reply(404, b"") if path == "/v1/models" else await get(path)

    recognized = await identify(engines, Probe(get_without_owner))
    state = await engine("http://b", get, Thresholds(6, 3)).fetch_state()
    print(json.dumps({
        "by_owner": engine.__name__,
        "by_status": recognized.__name__,
        "by_entry_point": engines.by_provider["novel"].__name__,
        "others": sorted({"llamacpp", "novel", "novel-labs", "openai", "vllm"} & engines.by_provider.keys()),
        "state": [state.ready, state.live, state.requests_processing, [model["id"] for model in state.models]],
    }))

asyncio.run(main())
"""


def test_an_installed_engine_is_found_by_owner_by_name_and_by_its_own_page(tmp_path: Path) -> None:
    package = tmp_path / "novel_engine"
    package.mkdir()
    (package / "__init__.py").write_text(ENGINE)
    about = tmp_path / "novel_engine-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: novel-engine\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[inference_engine_proxy_server.backends]\nnovel = novel_engine:NovelBackend\n"
    )
    ours = Path(inference_engine_proxy_server.__file__).parents[1]
    path = os.pathsep.join([str(tmp_path), str(ours), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", USES_IT],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        check=True,
        timeout=30,
        text=True,
    )
    assert json.loads(done.stdout) == {
        "by_owner": "NovelBackend",
        "by_status": "NovelBackend",
        "by_entry_point": "NovelBackend",
        "others": ["llamacpp", "novel", "novel-labs", "openai", "vllm"],
        "state": [True, True, 4.0, ["m"]],
    }
