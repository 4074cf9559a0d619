"""Engines that join and leave a fleet in several ways at once, under constant load."""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path

from support.http_client import Call, Reply, chat, send
from support.program import Command, Proxy
from support.running_proxy import Addressed
from support.waiting import eventually

__all__ = ["ADMIN", "ANNOUNCE", "Coming", "Tally", "fleet_file_of"]

ADMIN, ANNOUNCE = "key-of-the-operators", "key-of-the-engines"
_CHAT = "/v1/chat/completions"
_LEASE = ("--interval", "0.5")

Engines = Callable[[], AbstractAsyncContextManager[Addressed]]
"""Starts an engine for a context."""


def fleet_file_of(*urls: str) -> str:
    """A fleet file with these backends."""
    return "backends:\n" + "".join(f"  - url: {url}\n" for url in urls)


@dataclass(slots=True)
class Tally:
    """What clients have seen.

    Attributes:
        succeeded: requests with a complete reply, by the backend that served them.
        failures: one text for each other request.
        rounds: how often an engine has joined, served and left, by the way it did.
    """

    succeeded: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    rounds: Counter[str] = field(default_factory=Counter)


class Coming:
    """A proxy whose fleet changes all the time; ``fleet_file`` is its CONFIG_FILE, with only ``stable``."""

    def __init__(self, proxy: Proxy, folder: Path, fleet_file: Path, stable: Addressed, start: Engines) -> None:
        self.tally = Tally()
        self._proxy = proxy
        self._folder = folder
        self._fleet_file = fleet_file
        self._stable = stable
        self._start = start
        self._is_over = False

    async def run(self, seconds: float, clients: int) -> Tally:
        """Change the fleet in each way, at least once and for ``seconds``, while ``clients`` send requests."""
        ends_at = time.monotonic() + seconds
        changing = [self._repeat(one, ends_at) for one in (self._by_admin_api, self._by_announcement, self._by_file)]
        loop = asyncio.get_running_loop()
        load = [loop.create_task(self._client(streams=bool(number % 2))) for number in range(clients)]
        try:
            await asyncio.gather(*changing)
        finally:
            self._is_over = True
            await asyncio.gather(*load)
        return self.tally

    async def _repeat(self, change: Callable[[Addressed], Coroutine[None, None, None]], ends_at: float) -> None:
        while True:
            async with self._start() as engine:
                await change(engine)
            self.tally.rounds[change.__name__.strip("_")] += 1
            if time.monotonic() >= ends_at:
                return

    async def _by_admin_api(self, engine: Addressed) -> None:
        added = await self._ask("POST", "/admin/backends", {"url": engine.url})
        assert added.status == 201, added
        await self._serves(engine)
        removed = await self._ask("DELETE", f"/admin/backends/{engine.url}?wait_seconds=30")
        assert removed.json["safe_to_stop"], removed

    async def _by_announcement(self, engine: Addressed) -> None:
        arguments = ("--proxy", self._proxy.url, "--backend", engine.url, *_LEASE)
        with Command(self._folder / "announce", "announce", *arguments, ANNOUNCE_KEY=ANNOUNCE) as command:
            await self._serves(engine)
            command.signal(signal.SIGTERM)
            assert await command.ended() == 0, command.events

    async def _by_file(self, engine: Addressed) -> None:
        self._fleet_file.write_text(fleet_file_of(self._stable.url, engine.url))
        await self._serves(engine)
        self._fleet_file.write_text(fleet_file_of(self._stable.url))

        async def has_left() -> bool:
            answers = [(await self._ask("GET", "/admin/backends")).json for _ in range(4)]
            shown = {row["url"] for answer in answers for row in (*answer["backends"], *answer["leaving"])}
            return engine.url not in shown

        await eventually(has_left)

    async def _serves(self, engine: Addressed) -> None:
        before = self.tally.succeeded[engine.url]  # of an earlier engine on the same port
        await eventually(lambda: self.tally.succeeded[engine.url] >= before + 5)

    async def _ask(self, method: str, path: str, body: object = None) -> Reply:
        return await send(self._proxy.url, path, body, method=method, headers={"X-Admin-Key": ADMIN})

    async def _client(self, *, streams: bool) -> None:
        while not self._is_over:
            try:
                async with Call(self._proxy.url, _CHAT, chat(stream=streams)) as call:
                    call.send()
                    reply = await call.reply()
            except Exception as error:
                self.tally.failures.append(repr(error))
                continue
            if reply.status == 200 and reply.complete:
                self.tally.succeeded[reply.headers["x-backend"]] += 1
            else:
                self.tally.failures.append(f"{reply.status} {reply.complete} {reply.body[:300]!r}")
