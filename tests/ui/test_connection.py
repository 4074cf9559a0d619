"""The feed ends, refuses, falls silent, or its viewer looks elsewhere."""

from __future__ import annotations

import asyncio

from support.waiting import eventually
from ui.conftest import Show, StartFeed


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
    await console.shows("the proxy serves at most 32 at a time", "#feed-state")
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
