"""Writes lines in a thread of its own, so that nobody waits for a pipe that is not read, or for a slow disk."""

from __future__ import annotations

import asyncio
import logging
import os
import queue
import select
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TextIO

__all__ = ["LineWriter", "sink_of"]

_MOST_LINES = 20_000  # that wait for the sink: about 5 MB
_UNMIXED_BYTES = 4096  # up to this size, writes of several processes to one pipe do not mix (pipe(7), PIPE_BUF)
_CLOSE_SECONDS = 1.0

Sink = Callable[[bytes], None]

logger = logging.getLogger(__name__)


def sink_of(stream: TextIO) -> Sink:
    """A function that writes to ``stream``, and returns when all bytes are written.

    It bypasses the stream's buffer: a thread that holds its lock when the program ends would abort the program.
    """
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # a stream of a test, in memory
        return lambda block: _write_text(stream, block)
    stream.flush()
    return lambda block: _write_all(descriptor, block)


def _write_text(stream: TextIO, block: bytes) -> None:
    stream.write(block.decode())
    stream.flush()


def _write_all(descriptor: int, block: bytes) -> None:
    rest = memoryview(block)
    while rest:
        try:
            rest = rest[os.write(descriptor, rest) :]
        except BlockingIOError:  # another process has made the pipe non-blocking
            select.select([], [descriptor], [])


class LineWriter:
    """Writes lines to one sink. The thread starts with the first lines, so that a process can fork before that.

    Args:
        sink: writes a block of whole lines.
        is_shared: whether other processes write to the same place.
    """

    def __init__(self, sink: Sink, *, is_shared: bool = False) -> None:
        self._sink = sink
        self._is_shared = is_shared
        self._batches: queue.SimpleQueue[Sequence[str]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        # Each is changed by one thread only.
        self._put_lines = self._taken_lines = 0
        self._unread_lines = self._failed_lines = 0  # lost
        self._is_failing = self._is_behind = False

    @property
    def dropped(self) -> int:
        """Lines that were lost, because too many waited for the sink, or because it has failed."""
        return self._unread_lines + self._failed_lines

    def put(self, lines: Sequence[str]) -> None:
        """Write ``lines``, at least one, later; they end without a line feed. Never waits."""
        waiting = self._put_lines - self._taken_lines
        if waiting + len(lines) > _MOST_LINES:
            self._unread_lines += len(lines)
            if not self._is_behind:
                self._is_behind = True
                logger.error("the access log is not read: its lines are dropped until it is")
            return
        self._is_behind = self._is_behind and waiting > 0
        self._put_lines += len(lines)
        self._batches.put(lines)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="access log", daemon=True)
            self._thread.start()

    async def close(self) -> None:
        """Wait until all lines are written, but not long."""
        if self._thread is not None:
            self._batches.put(())
            await asyncio.to_thread(self._thread.join, _CLOSE_SECONDS)
            self._thread = None

    def _run(self) -> None:
        while lines := self._batches.get():
            self._write(lines)
            self._taken_lines += len(lines)

    def _write(self, lines: Sequence[str]) -> None:
        unwritten = len(lines)
        try:
            for block in _blocks(lines) if self._is_shared else (lines,):
                self._sink("\n".join([*block, ""]).encode())
                unwritten -= len(block)
        except OSError as error:
            self._failed_lines += unwritten
            if not self._is_failing:
                logger.error("the access log cannot be written: %s", error.strerror)
            self._is_failing = True
        else:
            self._is_failing = False


def _blocks(lines: Iterable[str]) -> Iterator[list[str]]:
    """``lines`` in blocks that do not mix with lines of other processes; a longer line is a block of its own."""
    block: list[str] = []
    size = 0
    for line in lines:
        length = len(line) if line.isascii() else len(line.encode())
        if block and size + length >= _UNMIXED_BYTES:
            yield block
            block, size = [], 0
        block.append(line)
        size += length + 1  # the line feed
    yield block
