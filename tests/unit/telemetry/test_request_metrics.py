from __future__ import annotations

import itertools
import random
import re
import string
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from inference_engine_proxy_server.telemetry.exposition import Labels
from inference_engine_proxy_server.telemetry.finished_requests import FinishedRequests
from inference_engine_proxy_server.telemetry.request_metrics import RequestMetrics
from inference_engine_proxy_server.telemetry.routes import route_of
from inference_engine_proxy_server.wire.outcome import Outcome
from support.records import request_record

PATH = "/v1/completions"


class Shown:
    """What a scrape of ``metrics`` shows, read by the reader of prometheus_client."""

    def __init__(self, metrics: RequestMetrics) -> None:
        self._metrics = metrics

    def samples(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families("".join(self._metrics.families()))
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float | None:
        return self.samples().get((name, frozenset(labels.items())))

    def buckets(self, name: str, **labels: str) -> dict[str, float]:
        """By upper bound, ascending."""
        wanted = labels.items()
        return {
            dict(pairs)["le"]: value
            for (found, pairs), value in self.samples().items()
            if found == f"{name}_bucket" and wanted <= dict(pairs).items()
        }


def name_of(backend: str | None, model: str | None) -> str:
    """The label of each model is its name."""
    return model or ""


@pytest.fixture
def finished() -> FinishedRequests:
    return FinishedRequests()


@pytest.fixture
def metrics(finished: FinishedRequests) -> RequestMetrics:
    return RequestMetrics(model_of=name_of, finished=finished)


@pytest.fixture
def shown(metrics: RequestMetrics) -> Shown:
    return Shown(metrics)


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


def test_nothing_is_counted_before_the_first_request(shown: Shown) -> None:
    assert set(shown.samples().values()) == {0}


DURATION = "inference_proxy_request_duration_seconds"
FIRST = "inference_proxy_time_to_first_token_seconds"
BETWEEN = "inference_proxy_inter_token_latency_seconds"
KIND = "gen_ai_token_type"
QUEUE_WAIT = "inference_proxy_queue_wait_seconds"
ROUTE = {"route": "completions", "model": ""}
STREAM: dict[str, Any] = {"path": PATH, "backend": "http://a", "policy": "p", "attempts": 1, "is_stream": True}


@pytest.mark.parametrize(
    ("seconds", "first_bucket"),
    [(0.0, "0.01"), (0.01, "0.01"), (0.0100001, "0.02"), (1.0, "1.28"), (327.68, "327.68"), (327.69, "+Inf")],
)
def test_observation_is_in_the_first_bucket_whose_bound_it_does_not_exceed(
    finished: FinishedRequests, shown: Shown, seconds: float, first_bucket: str
) -> None:
    finished.add(request_record(path=PATH, seconds=seconds))

    buckets = shown.buckets(DURATION)
    position = list(buckets).index(first_bucket)
    assert list(buckets.values()) == [0] * position + [1] * (len(buckets) - position)


@pytest.mark.parametrize("count", [1, 63, 64, 65, 200])
def test_sums_and_counts_are_those_of_the_requests(finished: FinishedRequests, shown: Shown, count: int) -> None:
    times = [random.uniform(0, 400) for _ in range(count)]

    for seconds in times:
        finished.add(request_record(**STREAM, seconds=seconds, first_byte_seconds=seconds / 2))

    for _ in range(2):  # a scrape changes nothing
        assert shown.value(f"{DURATION}_count", **ROUTE) == count
        assert shown.value(f"{DURATION}_sum", **ROUTE) == pytest.approx(sum(times))
        assert shown.value(f"{FIRST}_sum", **ROUTE) == pytest.approx(sum(times) / 2)
        buckets = shown.buckets(DURATION)
        for bound, below in buckets.items():
            assert below == sum(seconds <= float(bound) for seconds in times)


def test_only_streams_have_a_first_token(finished: FinishedRequests, shown: Shown) -> None:
    finished.add(request_record(**STREAM | {"is_stream": False}))
    finished.add(request_record(path=PATH, status=499, first_byte_seconds=None))

    assert shown.value(f"{DURATION}_count", **ROUTE) == 2
    assert shown.value(f"{FIRST}_count", **ROUTE) == 0


@pytest.mark.parametrize(("tokens", "count", "total"), [(None, 0, 0), (1, 0, 0), (2, 1, 8.0), (5, 1, 2.0)])
def test_time_between_tokens_is_the_average_of_a_stream(
    finished: FinishedRequests, shown: Shown, tokens: int | None, count: int, total: float
) -> None:
    finished.add(request_record(**STREAM, first_byte_seconds=1.0, seconds=9.0, output_tokens=tokens))

    assert shown.value(f"{BETWEEN}_count", **ROUTE) == count
    assert shown.value(f"{BETWEEN}_sum", **ROUTE) == total


def test_requests_that_did_not_wait_have_waited_for_0_seconds(finished: FinishedRequests, shown: Shown) -> None:
    finished.add(request_record(**STREAM))
    finished.add(request_record(**STREAM, queue_seconds=3.0))
    finished.add(request_record(path=PATH, queue_seconds=30.0, status=503, termination="queue_timeout"))
    finished.add(request_record(path=PATH, status=403))  # was never to be sent

    assert shown.value(f"{QUEUE_WAIT}_count", **ROUTE) == 3
    assert shown.value(f"{QUEUE_WAIT}_sum", **ROUTE) == 33.0
    assert shown.buckets(QUEUE_WAIT)["0.01"] == 1


def test_tokens_are_counted_by_model_and_backend(finished: FinishedRequests, shown: Shown) -> None:
    for model, backend, tokens in (
        ("m", "http://a", (9, 4, 3)),
        ("m", "http://a", (1, None, 2)),
        ("n", "http://b", (5, 0, None)),
    ):
        prompt, cached, output = tokens
        finished.add(
            request_record(
                **STREAM | {"model": model, "backend": backend},
                prompt_tokens=prompt, cached_tokens=cached, output_tokens=output,
            )
        )  # fmt: skip

    def tokens_of(model: str, backend: str) -> list[float | None]:
        kinds = ("prompt", "cached", "output")
        return [shown.value(f"inference_proxy_{kind}_tokens_total", model=model, backend=backend) for kind in kinds]

    assert tokens_of("m", "http://a") == [10, 4, 5]
    assert tokens_of("n", "http://b") == [5, 0, 0]


def test_unfinished_replies_are_counted_by_the_side_that_ended_them(finished: FinishedRequests, shown: Shown) -> None:
    for outcome, first_byte_seconds, termination in (
        (Outcome.CLIENT_LEFT, 0.1, "client_left"),
        (Outcome.CLIENT_LEFT, 0.1, "client_left"),
        (Outcome.CLIENT_LEFT, None, "client_left"),  # no reply to abort
        (Outcome.BROKEN, 0.1, "backend_timeout"),
        (Outcome.COMPLETE, 0.1, "complete"),
        (Outcome.COMPLETE, 0.1, "error_status"),
    ):
        fields = {"outcome": outcome, "first_byte_seconds": first_byte_seconds, "termination": termination}
        finished.add(request_record(**fields))

    assert shown.value("inference_proxy_stream_aborts_total", side="client") == 2
    assert shown.value("inference_proxy_stream_aborts_total", side="backend") == 1
    failures = [
        shown.value("inference_proxy_request_failures_total", reason=reason)
        for reason in ("client_left", "backend_timeout", "error_status", "complete")
    ]
    assert failures == [3, 1, 1, None]


def test_decisions_are_counted_by_policy(finished: FinishedRequests, shown: Shown) -> None:
    for policy in ("tied", "least_requests", "least_requests", None):
        finished.add(request_record(policy=policy))

    assert shown.value("inference_proxy_decisions_total", policy="least_requests") == 2
    assert shown.value("inference_proxy_decisions_total", policy="tied") == 1


def test_retries_are_counted_by_reason(metrics: RequestMetrics, shown: Shown) -> None:
    metrics.count_retry("backend_timeout")

    assert shown.value("inference_proxy_retries_total", reason="backend_timeout") == 1


def test_shed_requests_are_counted_by_reason(metrics: RequestMetrics, shown: Shown) -> None:
    metrics.count_shed("memory")

    assert shown.value("inference_proxy_shed_total", reason="memory") == 1
    assert shown.value("inference_proxy_shed_total", reason="event_loop") == 0


def test_readings_have_their_value_at_the_scrape(metrics: RequestMetrics, shown: Shown) -> None:
    values = iter([1.0, 2.0])
    metrics.add_gauge("thing", "A thing.", lambda: next(values))
    metrics.add_counter("event", "An event.", lambda: 7.0)

    for value in (1.0, 2.0):
        samples = shown.samples()
        assert samples["inference_proxy_thing", frozenset()] == value
        assert samples["inference_proxy_event_total", frozenset()] == 7.0


def test_a_worker_is_a_label_of_every_sample(finished: FinishedRequests) -> None:
    metrics = RequestMetrics(labels=Labels(3), finished=finished)
    metrics.add_gauge("thing", "A thing.", lambda: 1.0)
    finished.add(request_record(**STREAM, prompt_tokens=1))
    assert {dict(pairs).get("worker") for _, pairs in Shown(metrics).samples()} == {"3"}


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a\nb", "a%d%s%%b", "模型"])
def test_labels_may_have_any_characters(finished: FinishedRequests, name: str) -> None:
    metrics = RequestMetrics(model_of=lambda backend, model: name, finished=finished)
    finished.add(request_record(**STREAM, prompt_tokens=1))
    models = {dict(pairs)["model"] for _, pairs in Shown(metrics).samples() if "model" in dict(pairs)}
    assert models == {name}


def test_the_thousand_and_first_model_is_another_one(finished: FinishedRequests) -> None:
    metrics = RequestMetrics(model_of=name_of, finished=finished)
    for number in range(1100):
        finished.add(request_record(**STREAM | {"model": f"m{number}"}))
    counts = re.findall(rf'^{DURATION}_count.*model="(\w+)".* (\S+)$', "".join(metrics.families()), re.MULTILINE)
    models = {model: float(count) for model, count in counts}
    assert (models["m999"], models.get("m1000"), models["other"], len(models)) == (1, None, 100, 1001)


def test_a_model_gets_its_label_once_it_is_listed(finished: FinishedRequests) -> None:
    listed: set[str | None] = set()
    metrics = RequestMetrics(
        model_of=lambda backend, model: model if model in listed and model else "", finished=finished
    )
    shown = Shown(metrics)
    for _ in range(2):
        finished.add(request_record(**STREAM | {"model": "m"}))
        assert shown.value(f"{DURATION}_count", route="completions", model="") == 1
        listed.add("m")
    assert shown.value(f"{DURATION}_count", route="completions", model="m") == 1


def test_names_of_opentelemetry_show_the_same_figures(finished: FinishedRequests, shown: Shown) -> None:
    for path in ("/v1/chat/completions", "/v1/messages", PATH, "/v1/audio/transcriptions"):
        times = {"seconds": 5.0, "first_byte_seconds": 1.0, "prompt_tokens": 7, "output_tokens": 3}
        finished.add(request_record(**STREAM | times | {"path": path, "model": "m"}))

    def of(name: str, operation: str, **more: str) -> float | None:
        names = {"gen_ai_request_model": "m", "gen_ai_response_model": "m", "gen_ai_provider_name": "inference_proxy"}
        return shown.value(f"gen_ai_{name}", gen_ai_operation_name=operation, **names, **more)

    assert of("server_request_duration_count", "chat") == 2
    assert of("server_request_duration_sum", "chat") == 10.0
    assert of("server_time_to_first_token_sum", "chat") == 2.0
    assert of("server_time_per_output_token_sum", "chat") == 4.0
    assert of("client_token_usage_sum", "chat", **{KIND: "input"}) == 14.0
    assert of("client_token_usage_sum", "chat", **{KIND: "output"}) == 6.0
    assert of("server_request_duration_count", "text_completion") == 1
    assert (
        sum(value for (name, _), value in shown.samples().items() if name == "gen_ai_server_request_duration_count")
        == 3
    )
