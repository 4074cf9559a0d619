"""Endless background tasks: a crash is logged and the task restarted."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine

__all__ = ["keep_running"]

_PAUSE_SECONDS = 1.0  # so that a task that crashes at once does not use a whole CPU core

logger = logging.getLogger(__name__)


async def keep_running(name: str, run: Callable[[], Coroutine[None, None, None]]) -> None:
    """Run ``run`` until it returns or is cancelled; restart it after any exception.

    Args:
        name: names the task in the log.
        run: called for each start.
    """
    while True:
        try:
            return await run()
        except Exception:
            logger.exception("background task %r crashed; restarting it", name)
        await asyncio.sleep(_PAUSE_SECONDS)
