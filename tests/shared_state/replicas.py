"""Several real replicas of the proxy that share one server, and load for them that changes between replicas."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from support.engine import Engine
from support.fakes.engine import EngineConnection, http_reply
from support.http_client import chat, send
from support.program import Proxy, started
from support.waiting import eventually

__all__ = ["BEARER", "SECRET", "TOKENS", "Answered", "Answers", "Load", "replicas", "say", "shown"]

SECRET = "sk-alice-0123456789abcdef"  # noqa: S105 - opens nothing
BEARER = {"authorization": f"Bearer {SECRET}"}
TOKENS = 100
"""Of each request to the fixture ``engine``."""
_WEIGHTS = (8, 4, 2, 1)
_CHANGE_SECONDS = 2.0


class Answered(NamedTuple):
    """One request: when it was sent and for how long it took, in seconds; the number of its proxy; its status."""

    at: float
    seconds: float
    proxy: int
    status: int


class Load:
    """Requests at a constant rate. Most of them go to one replica, and to another one every two seconds.

    Args:
        proxies: the replicas.
        rate: requests a second.
        changes: whether the spread over the replicas changes.

    Attributes:
        answered: all requests that have ended, in this order.
        began_at: when the first request was sent.
    """

    def __init__(self, proxies: Sequence[Proxy], rate: float, *, changes: bool = True) -> None:
        self.proxies = list(proxies)
        self.answered: list[Answered] = []
        self.began_at = 0.0
        self._rate = rate
        self._changes = changes

    async def run(self, seconds: float) -> None:
        """Send for ``seconds``, and wait for all answers."""
        self.began_at = self.began_at or time.monotonic()
        began = time.monotonic()
        weights = list(_WEIGHTS[: len(self.proxies)])
        changed_at, due = began, began
        async with asyncio.TaskGroup() as group:
            while (now := time.monotonic()) < began + seconds:
                if self._changes and now >= changed_at + _CHANGE_SECONDS:
                    changed_at = now
                    random.shuffle(weights)
                while due <= now:
                    due += 1 / self._rate
                    [number] = random.choices(range(len(self.proxies)), weights[: len(self.proxies)])
                    group.create_task(self._send(number))
                await asyncio.sleep(0.005)

    async def _send(self, number: int) -> None:
        at = time.monotonic()
        status = (await send(self.proxies[number].url, "/v1/chat/completions", chat(), headers=BEARER)).status
        self.answered.append(Answered(at, time.monotonic() - at, number, status))

    def count(self, status: int, since: float = 0.0, until: float = float("inf")) -> int:
        """The answers with this status to requests that were sent in a time."""
        return sum(one.status == status and since <= one.at < until for one in self.answered)

    @property
    def statuses(self) -> Counter[int]:
        return Counter(one.status for one in self.answered)

    @property
    def seconds(self) -> float:
        """From the first request to the last one."""
        return max(one.at for one in self.answered) - self.began_at

    def latency(self, share: float) -> float:
        """The seconds within which this share of the requests was answered."""
        return sorted(one.seconds for one in self.answered)[int(share * (len(self.answered) - 1))]


@asynccontextmanager
async def replicas(
    folder: Path, engine: Engine, state_url: str, limits: str, count: int = 4, members: int = 4, **settings: str
) -> AsyncIterator[list[Proxy]]:
    """Replicas that know each other.

    Args:
        folder: of their files.
        engine: their backend.
        state_url: STATE_URL.
        limits: of the key, as in the key file.
        count: of replicas.
        members: of processes; 0: do not wait until they know each other.
        settings: further settings.
    """
    keys = f"keys:\n  - {{name: alice, secret: {SECRET}, {limits}}}\n"
    async with AsyncExitStack() as stack:
        started_ones = []
        for number in range(count):
            own = folder / f"replica-{number}"
            own.mkdir()
            (own / "keys.yaml").write_text(keys)
            usual = {"API_KEYS_FILE": "keys.yaml", "STATE_URL": state_url, "ACCESS_LOG": "false", "ADMIN_KEY": "admin"}
            started_ones.append(await started(stack, own, engine, **(usual | settings)))

        async def know_each_other() -> bool:
            known = [(await proxy.health())["shared_state"]["members"] for proxy in started_ones]
            return known == [members] * count

        if members:
            await eventually(know_each_other)
        yield started_ones
        for proxy in started_ones:
            assert "Traceback" not in proxy.events, proxy.events


class Answers:
    """What an engine does with each request: it answers after ``seconds``, and reports ``tokens``.

    Attributes:
        running: requests in progress. most: of them at a time.
    """

    def __init__(self, tokens: int, seconds: float = 0.0) -> None:
        body = b'{"choices":[],"usage":{"prompt_tokens":%d,"completion_tokens":1}}' % (tokens - 1)
        self._reply = http_reply(body, fields=b"content-type: application/json\r\n")
        self._seconds = seconds
        self.running = self.most = 0

    async def __call__(self, connection: EngineConnection) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(self._seconds)
        self.running -= 1
        connection.send(self._reply)


def say(sentence: str) -> None:
    """Print a measured figure."""
    print(f"\n  {sentence}")  # noqa: T201 - for people, with -s


def shown(what: str, measured: float, expected: float) -> float:
    """Print a measured figure beside the expected one; returns their difference as a part of the expected one."""
    difference = measured / expected - 1
    say(f"{what}: {measured:,.1f}, expected {expected:,.1f}: {difference:+.2%}")
    return abs(difference)
