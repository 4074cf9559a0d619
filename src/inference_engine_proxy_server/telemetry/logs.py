"""Logs: events go through ``logging`` to standard error, one access line per request goes to standard output."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time
from collections.abc import Container, Iterable, Iterator
from functools import lru_cache
from typing import TextIO

from inference_engine_proxy_server.telemetry.request_record import RequestRecord

__all__ = ["AccessLog", "configure_logging"]

_FLUSH_SECONDS = 0.2  # longest delay of an access line; a write for each line would cost a system call each
_FLUSH_LINES = 512
_UNMIXED_BYTES = 4096  # up to this size, writes of several processes to one pipe do not mix (pipe(7), PIPE_BUF)

_PROBES = frozenset(f"/{name}{end}" for name in ("health", "livez", "readyz", "metrics") for end in ("", "/"))

logger = logging.getLogger(__name__)


def configure_logging(level: str, log_format: str, worker: int | None = None) -> None:
    """Send this process's events to standard error.

    Args:
        level: ``debug``, ``info``, ``warning`` or ``error``.
        log_format: ``text``, or ``json`` for one object a line.
        worker: number of this process, shown in every event; ``None`` for a single process and for the supervisor.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter(worker) if log_format == "json" else _TextFormatter(worker))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # this program logs the same events itself


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds * 1000) % 1000:03d}Z"


class _TextFormatter(logging.Formatter):
    def __init__(self, worker: int | None) -> None:
        super().__init__()
        self._origin = "" if worker is None else f"[worker {worker}] "

    def format(self, record: logging.LogRecord) -> str:
        line = f"{_utc(record.created)} {record.levelname.lower():7} {self._origin}{record.getMessage()}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _JsonFormatter(logging.Formatter):
    def __init__(self, worker: int | None) -> None:
        super().__init__()
        self._origin = {} if worker is None else {"worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": _utc(record.created),
            "level": record.levelname.lower(),
            **self._origin,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            event["traceback"] = self.formatException(record.exc_info)
        return json.dumps(event)


class AccessLog:
    """One line for each finished request. Never has a body, a query or a header field, which may contain secrets.

    Args:
        stream: receives the lines.
        log_format: ``text`` or ``json``.
        is_shared: whether other processes write to the stream as well.
        has_probes: whether probes of health and metrics have lines. Those that are rejected (4xx) always have.
    """

    def __init__(self, stream: TextIO, log_format: str, *, is_shared: bool = False, has_probes: bool = True) -> None:
        self._stream = stream
        self._is_shared = is_shared
        self._skipped_paths: Container[str] = () if has_probes else _PROBES
        self._is_json = log_format == "json"
        self._lines: list[str] = []
        self._is_failing = False
        self._second = 0
        self._second_text = ""

    def write(self, record: RequestRecord) -> None:
        """Add the line of a finished request; it is written soon after."""
        backend = record.backend
        if backend is None and record.path in self._skipped_paths and _is_probe(record):
            return
        now = self._now()
        model = record.model
        first_byte_seconds = record.first_byte_seconds
        if self._is_json:
            line = json.dumps(
                {
                    "time": now, "client": record.client, "method": record.method, "path": record.path,
                    "status": record.status, "outcome": record.outcome, "backend": backend,
                    "model": model and model[:100], "alias": record.alias and record.alias[:100],
                    "first_byte_seconds": first_byte_seconds and round(first_byte_seconds, 4),
                    "seconds": round(record.seconds, 4), "sent_bytes": record.sent_bytes,
                    "request_id": record.request_id, "resumes": record.resumes,
                }
            )  # fmt: skip
        else:
            first_byte = "-" if first_byte_seconds is None else f"{first_byte_seconds:.4f}"
            line = (
                f'{now} {record.client} "{record.method} {record.path}" {record.status} {record.outcome} '
                f"backend={backend or '-'} model={_quoted(model) if model else '-'} first_byte={first_byte} "
                f"seconds={record.seconds:.4f} bytes={record.sent_bytes} id={record.request_id}"
                f"{_rare_words(record) if record.resumes or record.alias else ''}"
            )
        self._lines.append(line)
        if len(self._lines) >= _FLUSH_LINES:
            self.flush()

    def flush(self) -> None:
        """Write all collected lines. They are lost if that fails (closed pipe, full disk)."""
        if self._lines:
            lines, self._lines = self._lines, []
            try:
                for block in _blocks(lines) if self._is_shared else (lines,):
                    self._stream.write("\n".join(block) + "\n")
                    self._stream.flush()
            except OSError as error:
                if not self._is_failing:
                    logger.error("the access log cannot be written: %s", error.strerror)
                self._is_failing = True
            else:
                self._is_failing = False

    def _now(self) -> str:
        """The time in UTC; its date and second are formatted once a second, not once a line."""
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._second_text}.{int((now - second) * 1000):03d}Z"

    async def run(self) -> None:
        """Write collected lines periodically until cancelled, then the rest."""
        try:
            while True:
                await asyncio.sleep(_FLUSH_SECONDS)
                self.flush()
        finally:
            self.flush()


def _rare_words(record: RequestRecord) -> str:
    """The words of a line that most lines do not have."""
    resumes = f" resumes={record.resumes}" if record.resumes else ""
    return f"{resumes} alias={_quoted(record.alias)}" if record.alias else resumes


def _is_probe(record: RequestRecord) -> bool:
    """Whether a request for one of ``_PROBES`` is an ordinary probe, and was not rejected."""
    return record.method in ("GET", "HEAD") and not 400 <= record.status < 500


def _blocks(lines: Iterable[str]) -> Iterator[list[str]]:
    """``lines`` in blocks that do not mix with lines of other processes; a longer line is a block of its own."""
    block: list[str] = []
    size = 0
    for line in lines:
        if block and size + len(line) >= _UNMIXED_BYTES:
            yield block
            block, size = [], 0
        block.append(line)
        size += len(line) + 1  # lines are ASCII and end with a line feed
    yield block


@lru_cache(maxsize=256)  # clients use few models
def _quoted(text: str) -> str:
    """``text`` from a client as one word of a line, quoted if necessary."""
    text = text[:100]
    # ASCII only, because standard output may have an encoding without other characters.
    plain = text.isascii() and text.isprintable() and " " not in text and '"' not in text
    return text if plain else json.dumps(text)
