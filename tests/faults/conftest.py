"""The whole program in front of failing engines, and a check after each test that nothing is left."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import pytest

from support.fleet import Fleet
from support.llama_server import LlamaServer
from support.waiting import eventually

__all__ = ["CHAT", "LATE_LOOP_SECONDS", "OTHER"]

CHAT = "/v1/chat/completions"
OTHER = "/v1/responses"
"""A path whose requests may have side effects, so none may be sent twice."""


LATE_LOOP_SECONDS = "inference_engine_proxy_server.overload.loop_lag._TOO_LATE_SECONDS"


@pytest.fixture
async def fleet(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fleet]:
    # The proxy shares its event loop with the engines and clients of the test, and the machine with other tests: a late
    # loop must not make it refuse requests here.
    monkeypatch.setattr(LATE_LOOP_SECONDS, 60.0)
    files = _open_files()
    async with AsyncExitStack() as stack:
        fleet = Fleet(stack, keeps_access_log=True)
        yield fleet
        await fleet.nothing_is_left()
    await eventually(lambda: _open_files() <= files)


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture
def two_servers(tiny_model: Path) -> Iterator[list[LlamaServer]]:
    with ExitStack() as stack:
        yield [stack.enter_context(LlamaServer(tiny_model)) for _ in range(2)]
