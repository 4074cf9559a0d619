"""Builds what counts tokens: spending, for budgets, and the ledger."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.config.sources import SettingsError
from inference_engine_proxy_server.processes.process_context import ProcessContext
from inference_engine_proxy_server.telemetry.request_metrics import RequestMetrics
from inference_engine_proxy_server.usage.ledger import Ledger
from inference_engine_proxy_server.usage.ledger_file import FILE_ERRORS, LedgerFile, NotALedgerError
from inference_engine_proxy_server.usage.query import QueryError, UsageQuery
from inference_engine_proxy_server.usage.spending import Spending
from inference_engine_proxy_server.usage.usage_of_replicas import LedgerRows, as_answer, read_ledger

__all__ = ["build_ledger", "build_spending", "build_usage_answer"]

_MOST_ROWS = 20_000  # of an answer to another replica, a few megabytes

logger = logging.getLogger(__name__)


def build_spending() -> Spending:
    """What keys use of their budgets, from now on."""
    return Spending(time.time)


def build_ledger(
    settings: Settings, spending: Spending, metrics: RequestMetrics, process: ProcessContext, *, is_shared: bool
) -> Ledger | None:
    """The ledger; ``None`` without a file for it. Adds what the file has to ``spending``.

    Args:
        settings: names the file.
        spending: what keys use of their budgets.
        metrics: shows what is not in the file yet.
        process: this process.
        is_shared: whether ``spending`` goes on with sums of all replicas, of which the file has only this one.

    Raises:
        SettingsError: the file cannot be a ledger. A file that is locked, or a full disk, is no reason not to start.
    """
    if settings.usage_file is None:
        return None
    file = LedgerFile(Path(settings.usage_file))
    try:
        file.check()
        spending.end_writing(file.stored(spending.now()))
    except NotALedgerError as error:
        raise SettingsError([f"USAGE_FILE is {settings.usage_file!r}: {error}"]) from error
    except FILE_ERRORS as error:
        logger.error("usage: the ledger %s cannot be used yet: %s; budgets begin at 0", settings.usage_file, error)
    finally:
        file.close()  # a connection must not be shared with workers, which are forked
    ledger = Ledger(file, build_spending() if is_shared else spending, is_shared=process.is_worker)
    metrics.add_gauge(
        "usage_unwritten_requests",
        "Requests that are not in the usage file yet.",
        lambda: float(ledger.unwritten_requests),
    )
    return ledger


def build_usage_answer(settings: Settings) -> Callable[[Any], Awaitable[Any]]:
    """Answers the queries of other replicas from the ledger of this one."""
    file = None if settings.usage_file is None else Path(settings.usage_file)

    async def answer(argument: object) -> object:
        """The rows; ``None`` if the ledger cannot be read, or has too many."""
        try:
            query = msgspec.convert(argument, UsageQuery)
            found = (
                LedgerRows("", ()) if file is None else await asyncio.to_thread(read_ledger, file, query, _MOST_ROWS)
            )
        except (*FILE_ERRORS, NotALedgerError, QueryError, msgspec.ValidationError) as error:
            logger.error("usage: the question of another replica is left without an answer: %s", error)
            return None
        return as_answer(found)

    return answer
