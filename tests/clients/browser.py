"""A web page in a headless browser, from another origin than the proxy."""

from __future__ import annotations

import html
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

__all__ = ["answer_shown"]

_DEADLINE_SECONDS = 60
_PATIENCE_MILLISECONDS = 30_000  # of the page's virtual clock, which stops while it waits for the network


def answer_shown(page: str, folder: Path) -> str:
    """Open ``page`` and return the answer that it shows when it is done; ``folder`` is an empty directory."""
    site = folder / "site"
    site.mkdir()
    (site / "chat.html").write_text(page)
    with _web_server(site) as address:
        command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
        output = subprocess.run(
            [*command, f"--virtual-time-budget={_PATIENCE_MILLISECONDS}", "--dump-dom", f"{address}/chat.html"],
            capture_output=True,
            text=True,
            timeout=_DEADLINE_SECONDS,
            check=True,
        )
    shown = re.search(r'<pre id="answer">(.*?)</pre>', output.stdout, re.DOTALL)
    assert shown, output.stderr
    return html.unescape(shown[1])


class _QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the overridden method's
        """Log nothing."""


@contextmanager
def _web_server(site: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_QuietHandler, directory=str(site))) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            serving.join()
