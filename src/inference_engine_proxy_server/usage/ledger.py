"""The ledger: usage by hour, key and model, collected in memory and written to a file in batches."""

from __future__ import annotations

import asyncio
import logging
import time

from inference_engine_proxy_server.usage.counts import Counts, Place
from inference_engine_proxy_server.usage.ledger_file import FILE_ERRORS, LedgerFile, NotALedgerError
from inference_engine_proxy_server.usage.periods import hour_of
from inference_engine_proxy_server.usage.spending import Spending, StoredTokens
from inference_engine_proxy_server.usage.tokens import TokenUse

__all__ = ["BATCH_SECONDS", "Ledger"]

BATCH_SECONDS = 1.0
"""Between two batches: what `kill -9` loses, and how late budgets learn of other workers."""

_REMINDER_SECONDS = 300.0  # between log lines about a file that cannot be written
_MOST_ROWS = 100_000  # that wait in memory for a file that cannot be written: about 30 MB

logger = logging.getLogger(__name__)


class Ledger:
    """Collects counts, and writes them. Requests never wait for it, and never fail because of it.

    Args:
        file: the file.
        spending: compared with budgets; told what is in the file.
        is_shared: whether other workers write to the file, too.
    """

    def __init__(self, file: LedgerFile, spending: Spending, *, is_shared: bool) -> None:
        self._file = file
        self._spending = spending
        self._is_shared = is_shared
        self._unwritten: dict[Place, Counts] = {}
        self._batch: dict[Place, Counts] = {}  # that is being written
        self._writing: asyncio.Future[StoredTokens] | None = None
        self._lost_requests = 0  # since the file could last be written
        self._complained_at: float | None = None  # about a file that cannot be written

    @property
    def unwritten_requests(self) -> int:
        """Requests that are not in the file yet."""
        return sum(counts.requests for part in (self._unwritten, self._batch) for counts in part.values())

    def count(self, key: str, model: str, used: TokenUse, seconds: float, *, has_failed: bool) -> None:
        """Count a request that has just ended.

        Args:
            key: name of its API key; empty if it has none.
            model: its model; empty if that is not known.
            used: its tokens.
            seconds: how long it took.
            has_failed: whether its client got an error or a broken reply.
        """
        place = Place(hour_of(self._spending.now()), key, model)
        counts = self._unwritten.get(place)
        if counts is None:
            if len(self._unwritten) >= _MOST_ROWS:
                self._lost_requests += 1
                return
            counts = self._unwritten[place] = Counts()
        counts.count(used, seconds, has_failed=has_failed)

    async def run(self) -> None:
        """Write batches until cancelled, then the rest."""
        try:
            while True:
                await asyncio.sleep(BATCH_SECONDS)
                if self._unwritten or (self._is_shared and self._spending.has_keys):
                    await self._write()
        finally:
            if self._writing is not None:  # cancelled meanwhile; the thread goes on
                await self._end_writing(self._writing)
            if self._unwritten:
                await self._write()
            self._file.close()

    async def _write(self) -> None:
        self._batch, self._unwritten = self._unwritten, {}
        self._spending.begin_writing()
        loop = asyncio.get_running_loop()
        self._writing = loop.run_in_executor(None, self._file.add, self._batch, self._spending.now())
        await self._end_writing(self._writing)

    async def _end_writing(self, writing: asyncio.Future[StoredTokens]) -> None:
        await asyncio.wait({writing})
        self._writing = None
        batch, self._batch = self._batch, {}
        try:
            self._spending.end_writing(writing.result())
        except (*FILE_ERRORS, NotALedgerError) as error:
            self._spending.abandon_writing()
            self._put_back(batch)
            self._complain(error)
        else:
            if self._complained_at is not None:
                logger.warning("usage: the ledger is written again; it lacks %d requests", self._lost_requests)
                self._complained_at, self._lost_requests = None, 0

    def _put_back(self, batch: dict[Place, Counts]) -> None:
        """Keep what could not be written for the next batch."""
        newer, self._unwritten = self._unwritten, batch
        for place, counts in newer.items():
            if place in batch:
                batch[place].add(counts)
            else:
                batch[place] = counts

    def _complain(self, error: Exception) -> None:
        now = time.monotonic()
        if self._complained_at is None or now >= self._complained_at + _REMINDER_SECONDS:
            self._complained_at = now
            logger.error(
                "usage: the ledger %s cannot be written: %s; %d requests wait in memory, and clients notice nothing",
                self._file.path,
                error,
                self.unwritten_requests,
            )
