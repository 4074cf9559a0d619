"""The feed ends, refuses, falls silent, or its viewer looks elsewhere."""

from __future__ import annotations

import asyncio
from pathlib import Path

from fastapi import FastAPI

from support.waiting import eventually
from ui.conftest import Show, StartFeed
from ui.console import opened
from ui.feed_server import ADMIN_KEY, served


async def test_stale_values_are_called_so_until_the_proxy_is_back(start_feed: StartFeed, show: Show) -> None:
    server = start_feed(3)
    console = await show(server)
    await console.shows("3 backends")

    server.is_silent = True
    await console.shows("The proxy does not answer. What is shown is stale since", "#feed-state")
    assert await console.value("document.title.startsWith('!')")
    server.is_silent = False

    await console.becomes("document.querySelector('#feed-state').hidden")


async def test_page_connects_again_with_growing_pauses(start_feed: StartFeed, show: Show) -> None:
    server = start_feed(3)
    server.refusals = 4
    began = asyncio.get_running_loop().time()
    console = await show(server)
    await console.shows("3 backends")
    assert asyncio.get_running_loop().time() - began > 3  # 0.5 + 1 + 2 + 4 s, less a quarter
    assert server.opened == 1
    console.events.clear()  # the browser itself logs each refusal


async def test_full_feed_is_explained(start_feed: StartFeed, show: Show) -> None:
    server = start_feed(3)
    server.refusals = 1000
    console = await show(server)
    await console.shows("Too many dashboards of this proxy are open.", "#feed-state")
    console.events.clear()


async def test_page_that_is_not_seen_leaves_the_feed(start_feed: StartFeed, show: Show) -> None:
    server = start_feed(3)
    console = await show(server)
    await eventually(lambda: server.viewers == 1)

    other = await console.hide()
    await eventually(lambda: server.viewers == 0, 30)
    await console.unhide(other)

    await eventually(lambda: server.viewers == 1)
    await console.becomes("document.querySelector('#feed-state').hidden")


async def test_updates_can_be_paused(start_feed: StartFeed, show: Show) -> None:
    server = start_feed(3)
    console = await show(server)
    await console.press("p")
    await console.shows("Updates are paused.", "#feed-state")
    await eventually(lambda: server.viewers == 0)
    await console.press("p")
    await eventually(lambda: server.viewers == 1)
    await console.becomes("document.querySelector('#feed-state').hidden")


async def test_page_works_below_a_path_prefix(start_feed: StartFeed, tmp_path: Path) -> None:
    outside = FastAPI()
    outside.mount("/llm", start_feed(3).app)
    async with served(outside) as url, opened(f"{url}/llm/", tmp_path) as console:
        await console.becomes("document.querySelector('.fleet tbody') !== null")
        await console.sign_in(ADMIN_KEY)
        await console.value("location.hash = 'decisions'")
        await console.becomes("document.querySelectorAll('.decisions details').length === 12")
        await console.value("location.hash = 'playground'")
        await console.becomes("document.querySelector('textarea') !== null")
        await console.enter("textarea", "Hello")
        await console.shows("40 tokens", ".chat-log")
        assert await console.errors() == []
