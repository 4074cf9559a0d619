"""A copy of the project as in a fresh clone, and a user's shell in it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["PIP_CACHE", "Shell", "copied_project"]

_ROOT = Path(__file__).parents[2]
PIP_CACHE = Path("~/.cache/pip").expanduser()
_START_SECONDS = 300  # includes the installation of packages


@contextmanager
def copied_project(folder: Path) -> Iterator[Path]:
    """Copy the files of the project only, as in a fresh clone, into an empty folder, which is removed at the end."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=_ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(_ROOT / name, folder / name)
    yield folder
    shutil.rmtree(folder)  # with environments and the demo's model: 1 GB


class Shell:
    """A user's shell in ``folder``, without anything from this project in its environment."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV"))}
        self.environment = kept | variables

    def run(self, command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=_START_SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def running(self, command: str, until: str) -> Iterator[str]:
        """A command that runs until Ctrl-C; yields its output once that contains ``until``."""
        log = self.folder / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            deadline = time.monotonic() + _START_SECONDS
            while until not in log.read_text():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.05)
            yield log.read_text()
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(30) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()
