"""Makes the pictures of the dashboard in the documents: ``python screenshots.py FOLDER``."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from ui.console import Console, opened
from ui.feed_server import ADMIN_KEY, FeedServer, served, some_problems
from ui.scripted_fleet import ScriptedFleet

SIZE = 40


async def main(folder: Path) -> None:
    """Write the pictures into ``folder``."""
    fleet = ScriptedFleet(SIZE, some_problems(SIZE), ADMIN_KEY)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        async with served(FeedServer(fleet).app) as url, opened(f"{url}/", Path(profile)) as console:
            await console.becomes("document.querySelector('.fleet tbody') !== null")
            await console.sign_in(ADMIN_KEY)
            await console.shows("gpu-17")
            await console.screenshot(folder / "dashboard-light.png")
            await console.prefer(scheme="dark")
            await picture_of(console, "decisions", "document.querySelector('.decisions details') !== null", folder)
            await console.prefer(scheme="light")
            await console.resize(390, 780, scale=2, is_phone=True)
            await picture_of(console, "fleet", "document.querySelector('.fleet tbody') !== null", folder)


async def picture_of(console: Console, view: str, condition: str, folder: Path) -> None:
    """Write the picture of a view, once a condition holds."""
    await console.value(f"location.hash = '{view}'; scrollTo(0, 0)")
    await console.becomes(condition)
    await asyncio.sleep(1.5)  # until a snapshot has filled it
    name = "phone" if view == "fleet" else "dark"
    await console.screenshot(folder / f"dashboard-{name}.png")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
