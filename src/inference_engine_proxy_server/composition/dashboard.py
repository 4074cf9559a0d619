"""Builds the dashboard's data: what is recorded all the time, and what is made of it for viewers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.dashboard.cancelling import Cancelling
from inference_engine_proxy_server.dashboard.feed import Feed
from inference_engine_proxy_server.dashboard.fleet_events import FleetEvents
from inference_engine_proxy_server.dashboard.in_flight import InFlight
from inference_engine_proxy_server.dashboard.live_requests import LiveRequests
from inference_engine_proxy_server.dashboard.recorder import Recorder
from inference_engine_proxy_server.dashboard.rejections import note_rejection
from inference_engine_proxy_server.dashboard.reporter import Reporter
from inference_engine_proxy_server.dashboard.snapshot import Facts
from inference_engine_proxy_server.dashboard.traffic import Traffic
from inference_engine_proxy_server.dashboard.usage_totals import UsageTotals
from inference_engine_proxy_server.dashboard.worker_part import PartMaker
from inference_engine_proxy_server.dashboard.workers import Workers
from inference_engine_proxy_server.dispatch.leases import Dispatcher
from inference_engine_proxy_server.processes.process_context import Loops, ProcessContext
from inference_engine_proxy_server.processes.siblings import Answers
from inference_engine_proxy_server.telemetry.finished_requests import FinishedRequests
from inference_engine_proxy_server.telemetry.journal import Journal
from inference_engine_proxy_server.telemetry.request_record import RequestRecord
from inference_engine_proxy_server.wire.load import Load

__all__ = ["Dashboard", "build_dashboard"]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """The parts that others use.

    Attributes:
        reporter: makes snapshots. feed: sends them to viewers.
        cancelling: cancels live requests.
        loops: background tasks. answers: to queries of other workers.
    """

    reporter: Reporter
    feed: Feed
    cancelling: Cancelling
    loops: Loops
    answers: Answers


def build_dashboard(
    settings: Settings,
    dispatcher: Dispatcher,
    load: Load,
    finished: FinishedRequests,
    journal: Journal,
    process: ProcessContext,
    sources: Callable[[], Mapping[str, str]],
    is_own: Callable[[RequestRecord], bool],
) -> Dashboard:
    """The dashboard's data.

    Args:
        sources: the source of each backend, by base URL.
        is_own: whether a request was for one of the proxy's own paths.
    """
    fleet, siblings = dispatcher.fleet, process.siblings
    FleetEvents(fleet, journal)
    usage = UsageTotals()
    traffic, in_flight = Traffic(finished, is_own, partial(note_rejection, journal), usage), InFlight(fleet)
    live = LiveRequests(load, dispatcher.queue, fleet.clock, siblings.number)
    maker = PartMaker(siblings.number, live, traffic, usage, in_flight, dispatcher.placement, journal)
    workers = Workers(maker, siblings)
    facts = Facts(settings.balancing_policy, settings.max_queued_requests, time.time())
    reporter = Reporter(dispatcher, workers, facts, sources)
    feed, cancelling = Feed(reporter), Cancelling(live, siblings)
    loops = {"history": Recorder(traffic, live, in_flight, dispatcher).run, "dashboard": feed.run}
    return Dashboard(reporter, feed, cancelling, loops, {**workers.answers, **cancelling.answers})
