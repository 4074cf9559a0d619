"""A server of the built site, and a page in a browser that logs what it requests."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ui.console import Console, opened

SITE = Path(__file__).parents[2] / "build" / "site"


class _Handler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the overridden method's
        """Log nothing."""


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """The base URL of the site, which is in a folder below the root of its server, as on many hosts."""
    assert (SITE / "index.html").exists(), "scripts/site.sh builds the site"
    handler = partial(_Handler, directory=str(SITE.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield f"http://127.0.0.1:{server.server_port}/{SITE.name}/"
        server.shutdown()
        serving.join()


@pytest.fixture
async def page(address: str, tmp_path: Path) -> AsyncIterator[Console]:
    """The first page of the site; at the end, no page that it showed may have logged an error."""
    async with opened("about:blank", tmp_path) as console:
        await console.command("Network.enable")
        await console.open(address)
        await console.becomes("document.readyState === 'complete' && document.querySelector('h1') !== null")
        yield console
        assert await console.errors() == []


def requested(console: Console) -> list[str]:
    """The URLs that the browser has asked for, except for those of its own pages."""
    urls = [
        str(event["params"]["request"]["url"])
        for event in console.events
        if event["method"] == "Network.requestWillBeSent"
    ]
    return [url for url in urls if not url.startswith(("about:", "data:", "blob:"))]
