"""The answers of own paths conform to `/openapi.json`, whatever the request."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from pathlib import Path

from support.engine import Engine
from support.program import Proxy

# Requests with methods other than GET and HEAD are forwarded, so the engine answers them.
OWN = "^/(health|livez|readyz|v1/models|metrics)?$"


async def _findings(url: str, folder: Path) -> str:
    """The report of schemathesis; empty if it found no failure."""
    options = "--checks all --exclude-checks unsupported_method --max-examples 30 --no-color --include-path-regex"
    command = (sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", *options.split(), OWN)
    asking = await asyncio.create_subprocess_exec(*command, cwd=folder, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT)
    try:
        async with asyncio.timeout(60):
            output, _ = await asking.communicate()
    finally:
        if asking.returncode is None:
            asking.kill()
    return output.decode() if asking.returncode else ""


async def test_own_paths_answer_as_described(tmp_path: Path) -> None:
    async with Engine() as engine:
        with await asyncio.to_thread(Proxy, tmp_path, [engine.url]) as proxy:  # it polls the engine before it listens
            findings = await _findings(proxy.url, tmp_path)
    assert not findings, findings
