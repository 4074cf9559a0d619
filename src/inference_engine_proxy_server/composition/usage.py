"""Builds what counts tokens: spending, for budgets, and the ledger."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.config.sources import SettingsError
from inference_engine_proxy_server.processes.process_context import ProcessContext
from inference_engine_proxy_server.telemetry.request_metrics import RequestMetrics
from inference_engine_proxy_server.usage.ledger import Ledger
from inference_engine_proxy_server.usage.ledger_file import FILE_ERRORS, LedgerFile, NotALedgerError
from inference_engine_proxy_server.usage.spending import Spending

__all__ = ["build_ledger", "build_spending"]

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
