"""Builds the page of metrics."""

from __future__ import annotations

from collections.abc import Sequence

from inference_engine_proxy_server.discovery.discovery import Discovery
from inference_engine_proxy_server.dispatch.demand import Demand
from inference_engine_proxy_server.dispatch.leases import Dispatcher
from inference_engine_proxy_server.endpoints.fleet_metrics import FleetMetrics, LearnedMetrics
from inference_engine_proxy_server.endpoints.prometheus import MetricsPage
from inference_engine_proxy_server.endpoints.shadow_metrics import ShadowMetrics
from inference_engine_proxy_server.endpoints.source_metrics import SourceMetrics
from inference_engine_proxy_server.fleet.model_labels import ModelLabels
from inference_engine_proxy_server.processes.process_context import ProcessContext
from inference_engine_proxy_server.routing.placement import Placement
from inference_engine_proxy_server.routing.watched_placement import WatchedPlacement
from inference_engine_proxy_server.telemetry.exposition import Families, Labels
from inference_engine_proxy_server.telemetry.request_metrics import RequestMetrics
from inference_engine_proxy_server.wire.load import Load

__all__ = ["build_metrics_page"]


def build_metrics_page(
    dispatcher: Dispatcher,
    discovery: Discovery,
    load: Load,
    metrics: RequestMetrics,
    names: ModelLabels,
    labels: Labels,
    process: ProcessContext,
) -> MetricsPage:
    """The page of all metrics; ``load``: of clients."""
    placement = dispatcher.placement
    families = (
        FleetMetrics(dispatcher, labels).families,
        LearnedMetrics(placement, labels).families,
        SourceMetrics(lambda: discovery.members, labels).families,
        Demand(load, dispatcher.fleet, names, labels).families,
        metrics.families,
        *_shadow_families(placement, labels),
    )
    return MetricsPage(families, process.siblings, labels)


def _shadow_families(placement: Placement, labels: Labels) -> Sequence[Families]:
    if not isinstance(placement, WatchedPlacement):
        return ()
    return (ShadowMetrics(placement.shadow.counts, labels).families,)
