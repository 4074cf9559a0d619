"""The dashboard in a browser that a test controls."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from clients.browser import Page, connected
from support.waiting import eventually

__all__ = ["Console", "opened"]

_PATIENCE_SECONDS = 30
_KEYS = {"Enter": 13, "Escape": 27, "ArrowDown": 40, "ArrowUp": 38, "ArrowLeft": 37, "Tab": 9}


class Console(Page):
    """A page whose errors are collected."""

    async def open(self, url: str) -> None:
        is_new = not self._session
        if is_new:
            await super().open("about:blank")
            for domain in ("Runtime", "Log", "Page"):
                await self.command(f"{domain}.enable")
            await self.resize(1280, 800)
            await self.prefer(language="en-GB")
        await super().open(url)

    async def reload(self) -> None:
        """Load the page again, until it shows the fleet."""
        await self.value("window.isOld = true")
        await self.command("Page.reload")
        await self.becomes(
            "window.isOld === undefined && document.querySelector('.fleet tbody, .locked, #view > *') !== null"
        )

    async def resize(self, width: int, height: int, *, scale: float = 1, is_phone: bool = False) -> None:
        """Set the size of the page in CSS pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": is_phone}
        await self.command("Emulation.setDeviceMetricsOverride", **size)

    async def prefer(self, *, scheme: str = "light", language: str | None = None) -> None:
        """Set what the page learns of its user."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.command("Emulation.setEmulatedMedia", features=features)
        if language is not None:
            agent = await self.value("navigator.userAgent")
            await self.command("Emulation.setUserAgentOverride", userAgent=agent, acceptLanguage=language)

    async def shows(self, text: str, within: str = "body", seconds: float = _PATIENCE_SECONDS) -> None:
        """Wait until the visible text of an element contains ``text``."""
        await self.becomes(
            f"(document.querySelector({json.dumps(within)})?.innerText ?? '').includes({json.dumps(text)})", seconds
        )

    async def becomes(self, expression: str, seconds: float = _PATIENCE_SECONDS) -> None:
        """Wait until a JavaScript expression is true."""

        async def is_true() -> bool:
            return bool(await self.value(expression))

        await eventually(is_true, seconds)

    async def text(self, selector: str) -> str:
        """The visible text of the first element that matches."""
        return str(await self.value(f"document.querySelector({json.dumps(selector)}).innerText"))

    async def texts(self, selector: str) -> list[str]:
        """The visible texts of all elements that match."""
        found: list[str] = await self.value(
            f"[...document.querySelectorAll({json.dumps(selector)})].map((one) => one.innerText.trim())"
        )
        return found

    async def press(self, key: str) -> None:
        """Press a key, such as ``Escape`` or ``/``."""
        named = {"key": key, "windowsVirtualKeyCode": _KEYS.get(key, 0)}
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        await self.command("Input.dispatchKeyEvent", type="keyDown", **named, **({"text": text} if text else {}))
        await self.command("Input.dispatchKeyEvent", type="keyUp", **named)

    async def type(self, text: str) -> None:
        """Type into the element that has the focus."""
        await self.command("Input.insertText", text=text)

    async def hover(self, selector: str) -> None:
        """Move the pointer to the middle of an element."""
        place = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"
        script = f"(({{ x, y, width, height }}) => [x + width / 2, y + height / 2])({place})"
        x, y = await self.value(script)
        await self.command("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    async def click_at(self, selector: str) -> None:
        """Click the first element that matches."""
        await self.value(f"document.querySelector({json.dumps(selector)}).click()")

    async def overflow(self) -> int:
        """By how many pixels the page is wider than its window."""
        width: int = await self.value("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        return width

    async def sign_in(self, key: str) -> None:
        """Enter ADMIN_KEY."""
        await self.click("Sign in")
        await self.enter("dialog input", key)
        await self.becomes("document.querySelector('dialog') === null")
        await self.becomes(
            "[...document.querySelectorAll('#tools button')].some((one) => one.innerText === 'Sign out')"
        )

    async def hide(self) -> str:
        """Open another tab in front; returns its id."""
        tab = await self.browser("Target.createTarget", url="about:blank", newWindow=False)
        await self.browser("Target.activateTarget", targetId=tab["targetId"])
        return str(tab["targetId"])

    async def unhide(self, other: str) -> None:
        """Close the tab that is in front, and come to the front."""
        tabs = (await self.browser("Target.getTargets"))["targetInfos"]
        await self.browser("Target.closeTarget", targetId=other)
        for tab in tabs:
            if tab["type"] == "page" and tab["url"].startswith("http"):
                await self.browser("Target.activateTarget", targetId=tab["targetId"])

    async def browser(self, method: str, **parameters: object) -> dict[str, Any]:
        """Send a command to the browser, not to the page."""
        session, self._session = self._session, {}
        try:
            return await self.command(method, **parameters)
        finally:
            self._session = session

    async def screenshot(self, file: Path) -> None:
        """Write what the window shows as a PNG."""
        shot = await self.command("Page.captureScreenshot", format="png")
        await asyncio.to_thread(file.write_bytes, base64.b64decode(shot["data"]))

    async def traced(self, script: str) -> tuple[Any, list[float]]:
        """The value of an expression, and the CPU milliseconds of each task of the page's thread meanwhile."""
        self.events = [event for event in self.events if not event["method"].startswith("Tracing.")]
        categories = ["toplevel", "disabled-by-default-devtools.timeline", "__metadata"]
        config = {"includedCategories": categories, "excludedCategories": ["*"]}
        await self.browser("Tracing.start", transferMode="ReportEvents", traceConfig=config)
        value = await self.value(script)
        await self.browser("Tracing.end")
        await eventually(self._has_trace)
        traced = [
            one
            for event in self.events
            if event["method"] == "Tracing.dataCollected"
            for one in event["params"]["value"]
        ]
        mains = {(one["pid"], one["tid"]) for one in traced if one.get("args", {}).get("name") == "CrRendererMain"}
        return value, [
            one["tdur"] / 1000
            for one in traced
            if one["name"].endswith("RunTask") and "tdur" in one and (one["pid"], one["tid"]) in mains
        ]

    async def _has_trace(self) -> bool:
        await self.value("0")
        return any(event["method"] == "Tracing.tracingComplete" for event in self.events)

    async def errors(self) -> list[str]:
        """What the browser has logged as errors, and uncaught exceptions."""
        await self.value("0")  # what came before the answer to this is known by then
        return [found for event in self.events if (found := _error_of(event))]


@asynccontextmanager
async def opened(url: str, folder: Path) -> AsyncIterator[Console]:
    """Open the dashboard at ``url`` in a new browser; ``folder`` is an empty directory."""
    async with connected(folder) as (answers, commands):
        console = Console(answers, commands)
        await console.open(url)
        yield console


def _error_of(event: dict[str, Any]) -> str | None:
    parameters = event.get("params", {})
    if event.get("method") == "Runtime.exceptionThrown":
        return json.dumps(parameters["exceptionDetails"].get("exception", parameters))
    if event.get("method") == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "assert"):
        return json.dumps(parameters["args"])
    if event.get("method") == "Log.entryAdded" and parameters["entry"]["level"] == "error":
        return json.dumps(parameters["entry"])
    return None
