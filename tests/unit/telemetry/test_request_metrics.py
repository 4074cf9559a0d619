from __future__ import annotations

import itertools
import random
import string

import pytest
from prometheus_client import CollectorRegistry

from inference_engine_proxy_server.telemetry.request_metrics import RequestMetrics, route_of
from inference_engine_proxy_server.wire.outcome import Outcome
from support.records import request_record

PATH = "/v1/completions"


@pytest.fixture
def metrics() -> RequestMetrics:
    return RequestMetrics()


@pytest.fixture
def shown(metrics: RequestMetrics) -> CollectorRegistry:
    registry = CollectorRegistry()
    registry.register(metrics)
    return registry


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v1/chat/completions", "chat_completions"),
        ("/chat/completions", "chat_completions"),
        ("/v1/completions", "completions"),
        ("/completion", "completions"),
        ("/v1/messages", "messages"),
        ("/v1/messages/count_tokens", "other"),
        ("/v1/chat/completions/", "other"),
        ("/V1/CHAT/COMPLETIONS", "other"),
        ("/health", "other"),
        ("*", "other"),
        ("-", "other"),
        ("", "other"),
    ],
)
def test_route_of_a_path(path: str, route: str) -> None:
    assert route_of(path) == route


def test_route_of_any_path_is_one_of_a_fixed_set() -> None:
    paths = {f"/v1/{''.join(letters)}" for letters in itertools.product(string.ascii_lowercase, repeat=3)}

    assert {route_of(path) for path in paths} == {"other"}


def test_nothing_is_counted_before_the_first_request(metrics: RequestMetrics) -> None:
    assert {sample.value for family in metrics.collect() for sample in family.samples} == {0}


@pytest.mark.parametrize(
    ("seconds", "first_bucket"),
    [(0.0, "0.01"), (0.01, "0.01"), (0.0100001, "0.02"), (1.0, "1.28"), (327.68, "327.68"), (327.69, "+Inf")],
)
def test_observation_is_in_the_first_bucket_whose_bound_it_does_not_exceed(
    metrics: RequestMetrics, shown: CollectorRegistry, seconds: float, first_bucket: str
) -> None:
    metrics.count_request(request_record(path=PATH, seconds=seconds))

    samples = next(family for family in shown.collect() if family.name == "inference_proxy_request_duration_seconds")
    buckets = {sample.labels["le"]: sample.value for sample in samples.samples if sample.name.endswith("_bucket")}
    position = list(buckets).index(first_bucket)
    assert list(buckets.values()) == [0] * position + [1] * (len(buckets) - position)


def test_sums_and_counts_are_those_of_the_requests(metrics: RequestMetrics, shown: CollectorRegistry) -> None:
    times = [random.uniform(0, 400) for _ in range(50)]

    for seconds in times:
        metrics.count_request(request_record(path=PATH, seconds=seconds, first_byte_seconds=seconds / 2))

    route = {"route": "completions"}
    assert shown.get_sample_value("inference_proxy_request_duration_seconds_count", route) == 50
    assert shown.get_sample_value("inference_proxy_request_duration_seconds_sum", route) == pytest.approx(sum(times))
    first_bytes = shown.get_sample_value("inference_proxy_time_to_first_byte_seconds_sum", route)
    assert first_bytes == pytest.approx(sum(times) / 2)


def test_request_without_a_first_byte_has_a_duration_only(metrics: RequestMetrics, shown: CollectorRegistry) -> None:
    metrics.count_request(request_record(path=PATH, status=499, first_byte_seconds=None))

    route = {"route": "completions"}
    assert shown.get_sample_value("inference_proxy_request_duration_seconds_count", route) == 1
    assert shown.get_sample_value("inference_proxy_time_to_first_byte_seconds_count", route) == 0


def test_unfinished_replies_are_counted_by_the_side_that_ended_them(
    metrics: RequestMetrics, shown: CollectorRegistry
) -> None:
    for outcome, first_byte_seconds in (
        (Outcome.CLIENT_LEFT, 0.1),
        (Outcome.CLIENT_LEFT, 0.1),
        (Outcome.CLIENT_LEFT, None),  # no reply to abort
        (Outcome.BROKEN, 0.1),
        (Outcome.COMPLETE, 0.1),
    ):
        metrics.count_request(request_record(outcome=outcome, first_byte_seconds=first_byte_seconds))

    assert shown.get_sample_value("inference_proxy_stream_aborts_total", {"side": "client"}) == 2
    assert shown.get_sample_value("inference_proxy_stream_aborts_total", {"side": "backend"}) == 1


def test_retries_are_counted_by_reason(metrics: RequestMetrics, shown: CollectorRegistry) -> None:
    metrics.count_retry("backend_timeout")

    assert shown.get_sample_value("inference_proxy_retries_total", {"reason": "backend_timeout"}) == 1


def test_shed_requests_are_counted_by_reason(metrics: RequestMetrics, shown: CollectorRegistry) -> None:
    metrics.count_shed("memory")

    assert shown.get_sample_value("inference_proxy_shed_total", {"reason": "memory"}) == 1
    assert shown.get_sample_value("inference_proxy_shed_total", {"reason": "event_loop"}) == 0


def test_gauge_has_its_value_at_the_scrape(metrics: RequestMetrics, shown: CollectorRegistry) -> None:
    values = iter([1.0, 2.0])
    metrics.add_gauge("thing", "A thing.", lambda: next(values))

    for value in (1.0, 2.0):
        assert shown.get_sample_value("inference_proxy_thing") == value
