from __future__ import annotations

import pytest

from inference_engine_proxy_server.endpoints.fleet_metrics import FleetMetrics
from inference_engine_proxy_server.tasks.deadlines import Deadlines
from inference_engine_proxy_server.telemetry.exposition import Labels
from support.pools import Pool, make_pool, publish

A, B = "http://a", "http://b"


@pytest.fixture
def pool() -> Pool:
    pool = make_pool([A, B], Deadlines())
    publish(pool)
    return pool


def ejections(metrics: FleetMetrics) -> dict[str, str]:
    """Counts by labels, without those that are 0."""
    lines = "".join(metrics.families()).splitlines()
    found = [line.rpartition(" ") for line in lines if line.startswith("inference_proxy_backend_ejections_total{")]
    return {labels.partition("{")[2].rstrip("}"): count for labels, _, count in found if count != "0.0"}


def test_a_backend_that_stops_working_is_counted_once_each_time(pool: Pool) -> None:
    metrics = FleetMetrics(pool.dispatcher, Labels())
    backend = pool.backends[0]
    for times in (1, 2):
        for _ in range(3):
            pool.report_refused_connection(backend)
        assert ejections(metrics) == {f'backend="{A}",state="down"': f"{times}.0"}
        publish(pool)


def test_a_backend_that_has_never_worked_is_not_counted() -> None:
    pool = make_pool([A], Deadlines())
    metrics = FleetMetrics(pool.dispatcher, Labels())
    pool.report_refused_connection(pool.backends[0])
    assert ejections(metrics) == {}


def test_counts_of_backends_that_have_left_are_forgotten(pool: Pool) -> None:
    metrics = FleetMetrics(pool.dispatcher, Labels())
    for backend in pool.backends:
        pool.report_refused_connection(backend)
    assert len(ejections(metrics)) == 2
    pool.replace(pool.backends[1:])
    assert ejections(metrics) == {f'backend="{B}",state="down"': "1.0"}
