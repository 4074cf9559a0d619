"""Fleets with a scripted feed, and the page in a browser."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from ui.console import Console, opened
from ui.feed_server import ADMIN_KEY, FeedServer, served, some_problems
from ui.scripted_fleet import ScriptedFleet

StartFeed = Callable[..., FeedServer]
Show = Callable[[FeedServer], Awaitable[Console]]


@pytest.fixture
def start_feed() -> StartFeed:
    """Makes a server of the page with a scripted fleet; ``show`` starts it."""

    def make(size: int = 40, states: dict[int, str] | None = None, admin_key: str | None = ADMIN_KEY) -> FeedServer:
        return FeedServer(ScriptedFleet(size, some_problems(size) if states is None else states, admin_key))

    return make


@pytest.fixture
async def show(tmp_path: Path) -> AsyncIterator[Show]:
    """Starts a server and opens its page; at the end, the page must have logged no error."""
    async with AsyncExitStack() as stack:
        consoles: list[Console] = []

        async def start(server: FeedServer) -> Console:
            url = await stack.enter_async_context(served(server.app))
            consoles.append(await stack.enter_async_context(opened(f"{url}/", tmp_path)))
            if not server.refusals:
                await consoles[-1].becomes("document.querySelector('.fleet tbody') !== null")
            return consoles[-1]

        yield start
        for console in consoles:
            assert await console.errors() == []
