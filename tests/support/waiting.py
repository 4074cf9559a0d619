"""Waiting for conditions instead of sleeping."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any

__all__ = ["eventually"]

_LOOK_SECONDS = 0.01


async def eventually(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Return the first true result of ``condition``, or of the awaitable that it returns.

    Raises:
        AssertionError: there is none within ``seconds``; the message has the source of the condition.
    """
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        if inspect.isawaitable(answer):
            answer = await answer
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {_source(condition)}")
        await asyncio.sleep(_LOOK_SECONDS)


def _source(condition: Callable[[], object]) -> str:
    return inspect.getsource(condition).strip() if inspect.isfunction(condition) else repr(condition)
