"""A user of Redis with the permissions that docs/shared-state.md lists can do all that replicas need, and no more."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack
from pathlib import Path

from end_to_end.stateful_engine import StatefulEngine
from end_to_end.test_joining import add
from end_to_end.test_ownership import CHAT
from shared_state.operators import Replicas, command, is_drained
from shared_state.test_resources import continued, create
from support.program import Proxy
from support.redis_server import RedisServer
from support.waiting import eventually

_USER = re.compile(r"^user (proxy on >PASSWORD .*)$", re.MULTILINE)


async def test_the_documented_permissions_suffice(tmp_path: Path) -> None:
    user = _USER.search((Path(__file__).parents[2] / "docs" / "shared-state.md").read_text())
    assert user is not None
    async with AsyncExitStack() as stack:
        engine, other = [await stack.enter_async_context(StatefulEngine(name)) for name in "ab"]
        server = stack.enter_context(RedisServer(tmp_path / "redis", "--user", *user[1].split()))
        some = Replicas(stack, tmp_path, server, engine)
        url = server.url.replace("//", "//proxy:PASSWORD@")
        first, second = await some.start_some(2, STATE_URL=url)

        assert (await add(first, url=other.url)).status == 201
        await command(first, engine)
        await eventually(is_drained(second, engine))
        await eventually(lambda: takes_requests(second, other))
        response = await create(first)
        assert (await second.post(CHAT, {"model": "m", "messages": [{"role": "user", "content": "a"}]})).status == 200
        await asyncio.sleep(1)  # far more than a batch takes
        late = await some.start(STATE_URL=url)
        for proxy in (second, late):
            assert (await continued(proxy, response)).status == 200
        for proxy in (first, second, late):
            assert await proxy.metric("shared_state_failures_total") == 0
            assert "cannot be used" not in proxy.events


async def takes_requests(proxy: Proxy, engine: StatefulEngine) -> bool:
    return engine.url in (await proxy.details()) and await proxy.state(engine) == "up"
