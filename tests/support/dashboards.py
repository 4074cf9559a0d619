"""The dashboard's data over a pool without engines, and readers of a proxy's feed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from inference_engine_proxy_server.dashboard.audience import Audience
from inference_engine_proxy_server.dashboard.in_flight import InFlight
from inference_engine_proxy_server.dashboard.live_requests import LiveRequests
from inference_engine_proxy_server.dashboard.reporter import Reporter
from inference_engine_proxy_server.dashboard.snapshot import Facts
from inference_engine_proxy_server.dashboard.traffic import Traffic
from inference_engine_proxy_server.dashboard.usage_totals import UsageTotals
from inference_engine_proxy_server.dashboard.worker_part import PartMaker
from inference_engine_proxy_server.dashboard.workers import Workers
from inference_engine_proxy_server.processes.siblings import Siblings
from inference_engine_proxy_server.tasks.deadlines import Deadlines
from inference_engine_proxy_server.telemetry.finished_requests import FinishedRequests
from inference_engine_proxy_server.telemetry.journal import Journal
from inference_engine_proxy_server.wire.load import Load
from support.http_client import Call, send
from support.pools import Pool, make_pool
from support.running_proxy import RunningProxy
from support.waiting import eventually

__all__ = ["ADMIN_KEY", "OPERATOR", "Board", "live", "next_snapshot", "snapshot_of"]

ADMIN_KEY = "key-of-the-operators"
OPERATOR = {"X-Admin-Key": ADMIN_KEY}


class Board:
    """The dashboard's data of one worker in front of ``urls``, which are never polled."""

    operators = Audience("accepted", sees_addresses=True)

    def __init__(self, urls: Iterable[str] = ("http://a:1", "http://b:1"), siblings: Siblings | None = None) -> None:
        siblings = siblings or Siblings()
        self.pool: Pool = make_pool(urls, Deadlines())
        self.journal = Journal()
        self.usage = UsageTotals()
        self.finished = FinishedRequests()
        self.traffic = Traffic(self.finished, lambda record: record.path == "/health", lambda record: None, self.usage)
        self.in_flight = InFlight(self.pool.fleet)
        clock = self.pool.clock
        load = LiveRequests(Load(clock), self.pool.queue, clock, siblings.number)
        self.maker = PartMaker(
            siblings.number, load, self.traffic, self.usage, self.in_flight, self.pool.placement, self.journal
        )
        self.workers = Workers(self.maker, siblings)
        self.reporter = Reporter(self.pool.dispatcher, self.workers, Facts("least_requests", 9, 0.0), dict)


async def snapshot_of(proxy: RunningProxy, headers: Mapping[str, str] = OPERATOR) -> dict[str, Any]:
    """The content of ``GET /dashboard/snapshot``, for operators by default."""
    reply = await send(proxy.url, "/dashboard/snapshot", headers=headers)
    assert reply.status == 200, reply.body
    content: dict[str, Any] = reply.json
    return content


async def live(proxy: RunningProxy, is_wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Wait for a live request that ``is_wanted``."""

    async def found() -> dict[str, Any] | None:
        shown = (await snapshot_of(proxy))["requests"]["shown"]
        return next(filter(is_wanted, shown), None)

    request: dict[str, Any] = await eventually(found)
    return request


async def next_snapshot(feed: Call) -> tuple[int, dict[str, Any]]:
    """Id and content of the next event of a feed."""
    lines = dict(line.split(": ", 1) for line in (await feed.event()).decode().strip().split("\n"))
    assert lines["event"] == "snapshot"
    return int(lines["id"]), json.loads(lines["data"])
