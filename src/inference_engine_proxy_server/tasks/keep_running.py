"""Tasks without an end: what crashes is told and begun again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine

__all__ = ["keep_running"]

_PAUSE_SECONDS = 1.0  # so that what always crashes does not take the whole processor

logger = logging.getLogger(__name__)


async def keep_running(name: str, run: Callable[[], Coroutine[None, None, None]]) -> None:
    """Run ``run`` until it ends or is cancelled; what it raises ends neither this process nor, for long, its work."""
    while True:
        try:
            return await run()
        except Exception:
            logger.exception("the background task %r has crashed; it is started again", name)
        await asyncio.sleep(_PAUSE_SECONDS)
