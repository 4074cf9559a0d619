"""A web page in a headless browser, from another origin than the proxy."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

__all__ = ["answer_shown"]

_DEADLINE_SECONDS = 60
# A browser that is to print the page prints it before a stream has ended, so the page itself sends what it shows.
_SEND_ANSWER = """
  await fetch("/answer", { method: "POST", body: document.getElementById("answer").textContent });
</script>"""


def answer_shown(page: str, folder: Path) -> str:
    """Open ``page`` and return the answer that it shows at the end of its script; ``folder`` is an empty directory."""
    site = folder / "site"
    site.mkdir()
    (site / "chat.html").write_text(page.replace("</script>", _SEND_ANSWER))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    answers: SimpleQueue[str] = SimpleQueue()
    with _web_server(site, answers) as address, (folder / "browser.log").open("w") as log:
        with subprocess.Popen([*command, f"{address}/chat.html"], stdout=log, stderr=log) as browser:
            try:
                return answers.get(timeout=_DEADLINE_SECONDS)
            except Empty:
                raise TimeoutError((folder / "browser.log").read_text()) from None
            finally:
                browser.terminate()


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, *arguments: Any, directory: str, answers: SimpleQueue[str]) -> None:
        self._answers = answers
        super().__init__(*arguments, directory=directory)

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self._answers.put(self.rfile.read(length).decode())
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the overridden method's
        """Log nothing."""


@contextmanager
def _web_server(site: Path, answers: SimpleQueue[str]) -> Iterator[str]:
    handler = partial(_Handler, directory=str(site), answers=answers)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            serving.join()
