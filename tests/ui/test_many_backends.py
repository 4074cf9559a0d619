"""200 backends, whose values change every second, scroll smoothly."""

from __future__ import annotations

import os
from pathlib import Path

from ui.conftest import Show, StartFeed
from ui.feed_server import ADMIN_KEY

SCROLL = Path(__file__).with_name("scroll.js").read_text()
SECONDS = 6
LONGEST_FRAME_MS = 100
# CPU time of one task of the page's thread, which does not depend on other programs of the machine as frames do.
LONGEST_TASK_MS = 60
TRIES = 4


async def test_200_backends_scroll_without_a_long_frame(start_feed: StartFeed, show: Show) -> None:
    console = await show(start_feed(200))
    await console.sign_in(ADMIN_KEY)
    await console.becomes("document.querySelectorAll('.fleet button.name').length === 200")
    best: dict[str, float] = {}
    for _ in range(TRIES):
        scrolled, tasks = await console.traced(f"({SCROLL})({SECONDS})")
        assert scrolled["pixels"] > 1000
        assert len(tasks) > 100
        found = {"frame": round(max(scrolled["frames"])), "task": round(max(tasks))}
        print(f"longest frame {found['frame']} ms of {len(scrolled['frames'])}, longest task {found['task']} ms CPU")  # noqa: T201
        best = {name: min(best.get(name, found[name]), found[name]) for name in found}
        if best["frame"] <= LONGEST_FRAME_MS and best["task"] <= LONGEST_TASK_MS:
            break
    assert best["task"] <= LONGEST_TASK_MS
    is_busy = os.getloadavg()[0] > (os.cpu_count() or 1)
    assert is_busy or best["frame"] <= LONGEST_FRAME_MS


async def test_all_200_rows_follow(start_feed: StartFeed, show: Show) -> None:
    """Rows are updated in slices; none is left out."""
    server = start_feed(200, {})
    console = await show(server)
    await console.becomes("document.querySelectorAll('.fleet button.name').length === 200")
    await console.hover(".fleet tbody:nth-of-type(3)")  # so that no row moves
    server.fleet.states.update(dict.fromkeys(range(1, 201), "frozen"))
    await console.becomes("document.querySelectorAll('.fleet .state.is-frozen').length === 200")
