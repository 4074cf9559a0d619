"""Reports of usage cover all replicas, also those that share a file, and say if a replica is missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from shared_state.replicas import BEARER, TOKENS, replicas
from support.engine import Engine
from support.http_client import chat, send
from support.program import Proxy
from support.redis_server import RedisServer
from support.waiting import eventually

LIMITS = "tokens_per_day: 1000000000"


async def ask_each(proxies: Sequence[Proxy], counts: Sequence[int]) -> None:
    for proxy, count in zip(proxies, counts, strict=True):
        for _ in range(count):
            assert (await send(proxy.url, "/v1/chat/completions", chat(), headers=BEARER)).status == 200


async def report(proxy: Proxy) -> dict[str, Any]:
    found: dict[str, Any] = (await send(proxy.url, "/admin/usage?by=key", headers={"x-admin-key": "admin"})).json
    return found


async def until_all_show(proxies: Sequence[Proxy], requests: int, covers: str = "all_replicas") -> None:
    async def show() -> bool:
        found = [await report(proxy) for proxy in proxies]
        return [(one["covers"], one["total"]["requests"]) for one in found] == [(covers, requests)] * len(proxies)

    try:
        await eventually(show, seconds=15)
    except AssertionError:
        assert [await report(proxy) for proxy in proxies] == []  # shows them


async def test_every_replica_reports_the_usage_of_all(tmp_path: Path, engine: Engine, server: RedisServer) -> None:
    async with replicas(tmp_path, engine, server.url, LIMITS, 3, 3, USAGE_FILE="usage.db") as proxies:
        await ask_each(proxies, [3, 2, 1])
        await until_all_show(proxies, 6)
        own = (await send(proxies[2].url, "/v1/usage?by=", headers=BEARER)).json
        csv = await send(proxies[1].url, "/admin/usage?by=key&format=csv", headers={"x-admin-key": "admin"})
    assert (own["covers"], own["total"]["input_tokens"] + own["total"]["output_tokens"]) == ("all_replicas", 6 * TOKENS)
    assert (csv.headers["x-usage-covers"], csv.body.decode().splitlines()[1][:8]) == ("all_replicas", "alice,6,")


async def test_a_file_that_replicas_share_counts_once(tmp_path: Path, engine: Engine, server: RedisServer) -> None:
    file = str(tmp_path / "usage.db")
    async with replicas(tmp_path, engine, server.url, LIMITS, 2, 2, USAGE_FILE=file) as proxies:
        await ask_each(proxies, [2, 3])
        await until_all_show(proxies, 5)


async def test_a_report_names_replicas_that_are_missing(tmp_path: Path, engine: Engine, server: RedisServer) -> None:
    async with replicas(tmp_path, engine, server.url, LIMITS, 2, 2, USAGE_FILE="usage.db") as proxies:
        await ask_each(proxies, [2, 1])
        await until_all_show(proxies, 3)
        proxies[1].kill()
        await until_all_show(proxies[:1], 2, "some_replicas")
        assert len((await report(proxies[0]))["silent_replicas"]) == 1
