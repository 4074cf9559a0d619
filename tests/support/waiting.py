"""Waiting for something to become true, instead of for a time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable

__all__ = ["eventually"]

_LOOK_SECONDS = 0.01


async def eventually(condition: Callable[[], bool | Awaitable[bool]], seconds: float = 20.0) -> float:
    """Look at ``condition`` until it holds; gives the seconds that took.

    Raises:
        AssertionError: it does not hold in time; the message has its source.
    """
    began = time.monotonic()
    while True:
        holds = condition()
        if inspect.isawaitable(holds):
            holds = await holds
        passed = time.monotonic() - began
        if holds:
            return passed
        if passed > seconds:
            raise AssertionError(f"not within {seconds} s: {_source(condition)}")
        await asyncio.sleep(_LOOK_SECONDS)


def _source(condition: Callable[[], object]) -> str:
    return inspect.getsource(condition).strip() if inspect.isfunction(condition) else repr(condition)
