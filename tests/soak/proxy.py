"""The program under test: the installed command, as a user starts it, and observations of its process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import sys
import threading
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["Proxy"]

_LISTENING = re.compile(r"listening on http://127\.0\.0\.1:(\d+)$", re.MULTILINE)
_OUTCOME = re.compile(r'" (\d+) (\w+) backend=')
_START_SECONDS = 60.0
_STOP_SECONDS = 30.0
_BAD = re.compile(
    r"Traceback|never retrieved|never awaited|[Uu]nclosed|ResourceWarning|unexpected error|Exception in callback"
)
_ERROR = re.compile(r"^\S+Z (error|critical) +(.*)$")
_EXPECTED_ERROR = re.compile(r"settings: .*; the fleet is unchanged$")  # # a deliberately broken fleet file
_KEPT_LINES = 40


class Proxy:
    """One proxy process.

    Args:
        folder: its working directory.
        settings: its environment variables.

    Attributes:
        port: its port.
        bad_lines: unexpected lines of its log.
        outcomes: counts of status and outcome in its access log.
    """

    def __init__(self, folder: Path, **settings: str) -> None:
        self._folder = folder
        self._settings = settings
        self._errors = folder / "stderr"
        self._read_bytes = 0
        self._reader: threading.Thread
        self._process: asyncio.subprocess.Process
        self.port = 0
        self.bad_lines: list[str] = []
        self.warnings = 0
        self.outcomes: Counter[str] = Counter()

    async def __aenter__(self) -> Self:
        command = shutil.which("inference-proxy", path=str(Path(sys.executable).parent))
        if command is None:
            raise RuntimeError("the project is not installed beside this Python: no inference-proxy")
        kept = {name: value for name, value in os.environ.items() if name.startswith(("PYTHON", "PATH", "COV"))}
        # Reports sockets and transports that were never closed, which otherwise only debug builds do.
        kept["PYTHONWARNINGS"] = "default::ResourceWarning"
        read_end, write_end = os.pipe()
        try:
            with self._errors.open("wb") as errors:
                self._process = await asyncio.create_subprocess_exec(
                    command,
                    "serve",
                    cwd=self._folder,
                    env=kept | self._settings,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=write_end,
                    stderr=errors,
                    start_new_session=True,  # Ctrl-C is for the program that stops it
                )
        finally:
            os.close(write_end)
        self._reader = threading.Thread(target=self._read_access_log, args=(read_end,), daemon=True)
        self._reader.start()
        try:
            await self._wait_for_address()
        except BaseException:
            await self._kill()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self._kill()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        return self._process.returncode is not None

    def reload(self) -> None:
        """Signal that its settings have changed."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGHUP)

    async def stop(self) -> int | None:
        """Stop it as an operator does; returns its exit code, or ``None`` if it does not end."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(_STOP_SECONDS):
                return await self._process.wait()
        except TimeoutError:
            return None

    def read_errors(self) -> None:
        """Read its log since the last call."""
        with self._errors.open("rb") as file:
            file.seek(self._read_bytes)
            text = file.read()
        text = text[: text.rfind(b"\n") + 1]
        self._read_bytes += len(text)
        for line in text.decode(errors="replace").splitlines():
            self.warnings += "Z warning" in line
            error = _ERROR.match(line)
            if _BAD.search(line) or (error and not _EXPECTED_ERROR.search(line)):
                self.bad_lines.append(line)
            elif self.bad_lines and line.startswith(" ") and len(self.bad_lines) < _KEPT_LINES:
                self.bad_lines.append(line)  # the rest of a traceback

    def resident_bytes(self) -> int:
        """Its resident memory in bytes."""
        pages = Path(f"/proc/{self.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def cpu_seconds(self) -> float:
        """CPU seconds, user plus system."""
        words = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")

    def descriptors(self) -> Counter[str]:
        """Open file descriptors by type; sockets by state and peer port."""
        sockets = {}
        for row in map(str.split, Path(f"/proc/{self.pid}/net/tcp").read_text().splitlines()[1:]):
            sockets[row[9]] = f"socket in state {row[3]} to port {int(row[2].partition(':')[2], 16)}"
        kinds: Counter[str] = Counter()
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # closed since it was listed
                target = str(entry.readlink())
                kinds[sockets.get(target[8:-1], target) if target.startswith("socket:[") else target] += 1
        return kinds

    async def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        self._reader.join(5)

    async def _wait_for_address(self) -> None:
        async with asyncio.timeout(_START_SECONDS):
            while not (found := _LISTENING.search(self._errors.read_text())):
                if self.has_ended:
                    raise RuntimeError(f"the proxy did not start: {self._errors.read_text()}")
                await asyncio.sleep(0.05)
        self.port = int(found[1])

    def _read_access_log(self, read_end: int) -> None:
        with os.fdopen(read_end, errors="replace") as lines:
            for line in lines:
                found = _OUTCOME.search(line)
                self.outcomes[f"{found[1]} {found[2]}" if found else "no access line"] += 1
