"""Runs endless tasks in the background of an application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager

from inference_engine_proxy_server.tasks.keep_running import keep_running

__all__ = ["in_background"]


@asynccontextmanager
async def in_background(loops: Mapping[str, Callable[[], Coroutine[None, None, None]]]) -> AsyncIterator[None]:
    """Run each of ``loops`` until the block ends; one that crashes is restarted and does not end the others."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(keep_running(name, run), name=name) for name, run in loops.items()]
        yield
        for task in tasks:
            task.cancel()
