"""Pages in a headless browser: one from another origin than the proxy, or one that a test controls."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

__all__ = ["Page", "answer_shown", "connected", "opened"]

_CHROMIUM = ("chromium", "--headless", "--no-sandbox", "--disable-gpu")
_DEADLINE_SECONDS = 60
_LONGEST_ANSWER_BYTES = 1 << 24  # of the browser to a test
# A browser that is to print the page prints it before a stream has ended, so the page itself sends what it shows.
_SEND_ANSWER = """
  await fetch("/answer", { method: "POST", body: document.getElementById("answer").textContent });
</script>"""


def answer_shown(page: str, folder: Path) -> str:
    """Open ``page`` and return the answer that it shows at the end of its script; ``folder`` is an empty directory."""
    site = folder / "site"
    site.mkdir()
    (site / "chat.html").write_text(page.replace("</script>", _SEND_ANSWER))
    command = [*_CHROMIUM, f"--user-data-dir={folder / 'profile'}"]
    answers: SimpleQueue[str] = SimpleQueue()
    with _web_server(site, answers) as address, (folder / "browser.log").open("w") as log:
        with subprocess.Popen([*command, f"{address}/chat.html"], stdout=log, stderr=log) as browser:
            try:
                return answers.get(timeout=_DEADLINE_SECONDS)
            except Empty:
                raise TimeoutError((folder / "browser.log").read_text()) from None
            finally:
                browser.terminate()


class Page:
    """A page that a test controls, by the Chrome DevTools Protocol: JSON messages that end with a zero byte.

    Attributes:
        events: what the browser has told of its own accord.
    """

    def __init__(self, answers: asyncio.StreamReader, commands: asyncio.StreamWriter) -> None:
        self._answers = answers
        self._commands = commands
        self._number = 0
        self.events: list[dict[str, Any]] = []
        self._session: dict[str, str] = {}

    async def open(self, url: str) -> None:
        """Go to ``url``."""
        if not self._session:
            target = await self.command("Target.createTarget", url="about:blank")
            attached = await self.command("Target.attachToTarget", targetId=target["targetId"], flatten=True)
            self._session = {"sessionId": attached["sessionId"]}
        await self.command("Page.navigate", url=url)

    async def value(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page, or of its promise."""
        found = await self.command("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def has(self, selector: str) -> bool:
        """Whether the page has an element."""
        return bool(await self.value(f"document.querySelector({json.dumps(selector)}) !== null"))

    async def enter(self, selector: str, text: str) -> None:
        """Type ``text`` into a field, then press Enter."""
        await self.value(f"document.querySelector({json.dumps(selector)}).focus()")
        await self.command("Input.insertText", text=text)
        key = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}
        await self.command("Input.dispatchKeyEvent", type="keyDown", text="\r", **key)
        await self.command("Input.dispatchKeyEvent", type="keyUp", **key)

    async def click(self, label: str) -> None:
        """Click the button with this text or label."""
        buttons = "[...document.querySelectorAll('button')]"
        await self.value(
            f"{buttons}.find((one) => [one.innerText.trim(), one.ariaLabel].includes({json.dumps(label)})).click()"
        )

    async def command(self, method: str, **parameters: object) -> dict[str, Any]:
        """Send a command of the protocol and return its result; events that come first are kept in ``events``."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": parameters} | self._session
        self._commands.write(json.dumps(command).encode() + b"\0")
        await self._commands.drain()
        while True:
            message = json.loads((await self._answers.readuntil(b"\0"))[:-1])
            if message.get("id") != self._number:
                self.events.append(message)
            else:
                assert "error" not in message, message
                result: dict[str, Any] = message["result"]
                return result


@asynccontextmanager
async def opened(url: str, folder: Path) -> AsyncIterator[Page]:
    """Open ``url`` in a new browser; ``folder`` is an empty directory."""
    async with connected(folder) as (answers, commands):
        page = Page(answers, commands)
        await page.open(url)
        yield page


@asynccontextmanager
async def connected(folder: Path) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A new browser, by the two streams that a :class:`Page` needs; ``folder`` is an empty directory."""
    ours, theirs = socket.socketpair()
    with theirs, (folder / "browser.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            # It reads commands from descriptor 3 and writes answers to 4.
            *("bash", "-c", 'exec "${@:2}" 3<&"$1" 4>&"$1"', "bash", str(theirs.fileno()), *_CHROMIUM),
            *("--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}"),
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    answers, commands = await asyncio.open_unix_connection(sock=ours, limit=_LONGEST_ANSWER_BYTES)
    try:
        yield answers, commands
    finally:
        commands.close()
        process.kill()
        await process.wait()


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
