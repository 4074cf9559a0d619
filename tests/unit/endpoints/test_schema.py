"""What our own paths answer is what `/openapi.json` says of them, whatever they are asked."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import DEVNULL, PIPE, STDOUT
from pathlib import Path

from support.engine import Engine
from support.program import Proxy

# Other methods than GET and HEAD are passed on, so what they are answered is the engine's business.
OWN = "^/(health|livez|readyz|v1/models|metrics)?$"


async def _findings(url: str, folder: Path) -> str:
    """What schemathesis has to say against the paths; empty: nothing."""
    options = "--checks all --exclude-checks unsupported_method --max-examples 30 --no-color --include-path-regex"
    command = (sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", *options.split(), OWN)
    asking = await asyncio.create_subprocess_exec(*command, cwd=folder, stdin=DEVNULL, stdout=PIPE, stderr=STDOUT)
    try:
        async with asyncio.timeout(60):
            told, _ = await asking.communicate()
    finally:
        if asking.returncode is None:
            asking.kill()
    return told.decode() if asking.returncode else ""


async def test_our_own_paths_answer_as_described(tmp_path: Path) -> None:
    async with Engine() as engine:
        with await asyncio.to_thread(Proxy, tmp_path, [engine.url]) as proxy:  # it asks the engine before it listens
            findings = await _findings(proxy.url, tmp_path)
    assert not findings, findings
