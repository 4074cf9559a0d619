"""The program needs neither a writable file system nor any capability, as its container has it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from kubernetes.chart import container_of, environment_of, render
from support.http_client import send
from support.ports import free_port
from support.program import environment
from support.waiting import eventually

# Remounts / in a mount namespace of its own, and drops all capabilities. Fails if the folder is still writable.
_CONFINED = """
mount --make-rprivate / && mount -o remount,bind,ro / && ! touch "$0/written" 2> /dev/null &&
exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all "$@"
"""


@contextmanager
def confined(folder: Path, variables: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """The proxy on a read-only file system and without capabilities; it must end with code 0."""
    program = [sys.executable, "-m", "inference_engine_proxy_server", "serve"]
    process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", _CONFINED, str(folder), *program],
        cwd=folder,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        process.terminate()
        output, _ = process.communicate(timeout=60)
    assert (process.returncode, b"Traceback" in output) == (0, False), output.decode()
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a mount namespace")
@pytest.mark.parametrize("workers", ["1", "2"])
async def test_the_proxy_runs_on_a_read_only_file_system_without_capabilities(tmp_path: Path, workers: str) -> None:
    manifests = render((), "--set", f"settings.WORKERS={workers}")
    context = container_of(manifests)["securityContext"]
    assert (context["readOnlyRootFilesystem"], context["capabilities"]) == (True, {"drop": ["ALL"]})
    port = str(free_port())
    own = {"HOST": "127.0.0.1", "PORT": port, "ADMIN_PORT": str(free_port()), "BACKENDS": "http://127.0.0.1:9"}
    with confined(tmp_path, environment_of(manifests) | own | {"DRAIN_GRACE_SECONDS": "0"}) as process:
        await eventually(lambda: process.poll() is not None or answers(f"http://127.0.0.1:{port}"), 60)
        assert process.poll() is None


async def answers(url: str) -> bool:
    try:
        return (await send(url, "/livez")).status == 200
    except OSError:
        return False
