"""The llama.cpp engine, against recorded and made-up replies."""

from __future__ import annotations

import json
import math

import pytest

from inference_engine_proxy_server.backends.base import (
    Api,
    ModelNames,
    ModelReport,
    ModelStatus,
    Reply,
    Thresholds,
    UnreadableState,
)
from inference_engine_proxy_server.backends.llamacpp import LlamaCppBackend
from recorded import answering, recorded

HEALTHY = recorded("llama-server", "health-ready")
METRICS = recorded("llama-server", "metrics-after")
# Excerpts of complete replies of 2 kB (build 11549) and 233 bytes (a router, build 11434).
PROPS = Reply(200, b'{"default_generation_settings":{"n_ctx":2048},"total_slots":2,"is_sleeping":false}')
ROUTER_PROPS = Reply(200, b'{"role":"router","max_instances":4,"model_alias":"llama-server","model_path":"none"}')
SINGLE = {
    "/health": HEALTHY,
    "/metrics": METRICS,
    "/v1/models": recorded("llama-server", "v1-models"),
    "/props": PROPS,
}
ROUTER = {
    "/health": recorded("llama-server-router", "health"),
    "/metrics": recorded("llama-server-router", "metrics-no-model"),
    "/v1/models": recorded("llama-server-router", "v1-models-after"),
    "/props": ROUTER_PROPS,
}


def backend(answers: dict[str, Reply | Exception], asked: list[str] | None = None) -> LlamaCppBackend:
    return LlamaCppBackend("http://b", answering(answers, asked), Thresholds(requests_processing=6, requests_waiting=3))


def metrics(processing: str, deferred: str) -> Reply:
    page = METRICS.body.replace(
        b"\nllamacpp:requests_processing 0", f"\nllamacpp:requests_processing {processing}".encode()
    )
    return Reply(
        200, page.replace(b"\nllamacpp:requests_deferred 0", f"\nllamacpp:requests_deferred {deferred}".encode())
    )


async def test_a_recorded_idle_server_is_ready_and_idle() -> None:
    state = await backend({**SINGLE}).fetch_state()
    assert (state.ready, state.live, state.reason) == (True, True, "")
    assert (state.requests_processing, state.requests_waiting) == (0.0, 0.0)
    assert (state.starting, state.capacity, state.progress) == (False, 2, 206.0)
    assert [model["id"] for model in state.models or ()] == ["models/gemma-3-270m-q4_k_m.gguf"]
    assert state.model_names is ModelNames.ANY
    assert state.contexts == {"models/gemma-3-270m-q4_k_m.gguf": 2048}
    assert (state.bounds_max_tokens, state.memory_tokens) == (False, None)
    assert not state.streams_usage_on_request
    assert state.figures == {
        "llamacpp:prompt_tokens_total": 135.0,
        "llamacpp:prompt_tokens_cached_total": 192.0,
        "llamacpp:tokens_predicted_total": 190.0,
    }


async def test_a_recorded_embedded_server_is_understood_too() -> None:
    answers = {"/health": HEALTHY, "/metrics": recorded("xllamacpp", "metrics")}
    state = await backend({**answers, "/v1/models": recorded("xllamacpp", "v1-models")}).fetch_state()
    assert (state.ready, state.requests_processing, state.model_names) == (True, 0.0, ModelNames.ANY)
    assert state.progress is not None


async def test_a_loading_server_is_starting_and_not_live() -> None:
    loading = recorded("llama-server", "models-loading")
    asked: list[str] = []
    answers = {"/health": recorded("llama-server", "health-loading"), "/metrics": loading, "/v1/models": loading}
    state = await backend({**answers}, asked).fetch_state()
    assert (state.ready, state.live, state.starting, state.reason) == (False, False, True, "loading its model")
    assert asked == ["/health"]


@pytest.mark.parametrize("status", [401, 404, 500, 503])
async def test_a_health_status_other_than_200_makes_it_not_live(status: int) -> None:
    state = await backend({**SINGLE, "/health": Reply(status, b"")}).fetch_state()
    assert (state.ready, state.live, state.starting) == (False, False, False)
    assert state.reason == f"GET /health answered {status}"


@pytest.mark.parametrize("error", [TimeoutError, ConnectionRefusedError, UnreadableState])
async def test_a_missing_health_reply_raises(error: type[Exception]) -> None:
    with pytest.raises(error):
        await backend({**SINGLE, "/health": error()}).fetch_state()


@pytest.mark.parametrize(
    "answer",
    [
        recorded("llama-server", "metrics-disabled"),
        TimeoutError(),
        ConnectionResetError(),
        UnreadableState(),
        Reply(200, b""),
        Reply(200, b"<html>busy</html>"),
        metrics("NaN", "NaN"),
        metrics("-1", "+Inf"),
        Reply(500, metrics("9", "9").body),
    ],
)
async def test_unusable_metrics_leave_it_ready_with_unknown_load(answer: Reply | Exception) -> None:
    state = await backend({**SINGLE, "/metrics": answer}).fetch_state()
    assert (state.ready, state.live) == (True, True)
    assert (state.requests_processing, state.requests_waiting) == (None, None)
    assert state.models
    assert state.capacity == 2


@pytest.mark.parametrize(
    "answer",
    [
        TimeoutError(),
        recorded("llama-server", "metrics-disabled"),
        Reply(200, METRICS.body.replace(b"n_decode_total", b"n_decoded")),
        Reply(200, METRICS.body.replace(b"n_decode_total 206", b"n_decode_total NaN")),
    ],
    ids=lambda answer: repr(answer)[:40],
)
async def test_progress_is_unknown_without_its_metric(answer: Reply | Exception) -> None:
    state = await backend({**SINGLE, "/metrics": answer}).fetch_state()
    assert (state.ready, state.progress) == (True, None)


@pytest.mark.parametrize(
    "answer",
    [
        TimeoutError(),
        UnreadableState(),
        recorded("llama-server", "err-no-api-key"),
        Reply(501, b'{"total_slots":2}'),
        Reply(200, b'{"total_slots":0}'),
        Reply(200, b'{"total_slots":-1}'),
        Reply(200, b'{"total_slots":true}'),
        Reply(200, b'{"total_slots":"2"}'),
        Reply(200, b'{"total_slots":null}'),
        Reply(200, b'{"total_slots":2'),
        Reply(200, b'{"x":' + b"[" * 100_000),
        Reply(200, b"[]"),
    ],
    ids=lambda answer: repr(answer)[:60],
)
async def test_unusable_props_leave_it_ready_with_unknown_capacity(answer: Reply | Exception) -> None:
    state = await backend({**SINGLE, "/props": answer}).fetch_state()
    assert (state.ready, state.live, state.reason, state.capacity) == (True, True, "", None)
    assert (state.requests_processing, state.progress) == (0.0, 206.0)


async def test_slots_are_read_at_every_poll() -> None:
    answers: dict[str, Reply | Exception] = {**SINGLE}
    polled = backend(answers)
    assert (await polled.fetch_state()).capacity == 2
    answers["/props"] = Reply(200, b'{"total_slots":8}')
    assert (await polled.fetch_state()).capacity == 8


@pytest.mark.parametrize(
    ("processing", "deferred", "reason"),
    [
        ("6", "3", ""),
        ("7", "0", "busy: 7 requests processing, limit 6"),
        ("2", "4", "busy: 4 requests deferred, limit 3"),
        ("junk", "4", "busy: 4 requests deferred, limit 3"),
        ("6", "junk", ""),
    ],
)
async def test_a_load_above_a_threshold_makes_it_busy_but_live(processing: str, deferred: str, reason: str) -> None:
    state = await backend({**SINGLE, "/metrics": metrics(processing, deferred)}).fetch_state()
    assert (state.ready, state.live, state.reason) == (not reason, True, reason)


@pytest.mark.parametrize(
    ("slots", "processing", "reason"),
    [
        (16, "16", ""),
        (16, "17", "busy: 17 requests processing, limit 16"),
        (2, "6", ""),
        (2, "7", "busy: 7 requests processing, limit 6"),
    ],
)
async def test_unconfigured_limit_is_at_least_the_number_of_slots(slots: int, processing: str, reason: str) -> None:
    answers = {**SINGLE, "/metrics": metrics(processing, "0"), "/props": Reply(200, b'{"total_slots":%d}' % slots)}
    engine = LlamaCppBackend("http://b", answering(answers), Thresholds(6, 3, grows_with_slots=True))
    assert (await engine.fetch_state()).reason == reason


async def test_chosen_limit_below_the_slots_holds_and_is_warned_about_once(caplog: pytest.LogCaptureFixture) -> None:
    answers = {**SINGLE, "/metrics": metrics("5", "0"), "/props": Reply(200, b'{"total_slots":16}')}
    for _ in range(2):
        engine = LlamaCppBackend("http://once", answering(answers), Thresholds(4, 3))
        assert (await engine.fetch_state()).reason == "busy: 5 requests processing, limit 4"
    assert [record.getMessage().partition(";")[0] for record in caplog.records] == [
        "backend http://once has 16 slots, but is busy above 4 requests in process"
    ]


async def test_model_of_a_sleeping_server_is_cold() -> None:
    sleeping = Reply(200, PROPS.body.replace(b'"is_sleeping":false', b'"is_sleeping":true'))
    state = await backend({**SINGLE, "/props": sleeping}).fetch_state()
    assert (state.ready, state.capacity) == (True, 2)
    assert state.statuses == {"models/gemma-3-270m-q4_k_m.gguf": ModelStatus.COLD}


async def test_unloaded_and_failed_models_of_a_router_are_cold() -> None:
    assert (await backend({**ROUTER}).fetch_state()).statuses == {"tiny-b": ModelStatus.COLD}
    statuses = {
        "a": {"value": "loaded"},
        "b": {"value": "unloaded"},
        "c": {"value": "unloaded", "failed": True, "exit_code": 1},
        "d": {"value": "failed"},
        "e": {"value": "loading"},
        "f": {"value": "sleeping"},
        "g": {},
        "h": 7,
    }
    models = [{"id": name, "owned_by": "llamacpp", "status": status} for name, status in statuses.items()]
    page = Reply(200, json.dumps({"data": models}).encode())
    cold, failed = ModelStatus.COLD, ModelStatus.FAILED
    state = await backend({**ROUTER, "/v1/models": page}).fetch_state()
    assert state.statuses == {"b": cold, "c": failed, "d": failed, "e": cold, "f": cold}


QUERY = "?model=tiny-a&autoload=false"


async def test_a_router_reports_load_and_slots_of_each_model_in_memory_and_none_of_its_own() -> None:
    asked: list[str] = []
    pages = {f"/props{QUERY}": PROPS, f"/metrics{QUERY}": metrics("1", "2")}
    state = await backend({**ROUTER, **pages}, asked).fetch_state()
    assert (state.ready, state.requests_processing, state.model_names) == (True, None, ModelNames.STRICT)
    assert (state.capacity, state.progress, state.most_models) == (None, None, 4)
    assert [model["id"] for model in state.models or ()] == ["tiny-a", "tiny-b"]
    assert state.contexts == {"tiny-a": 1024}  # tiny-b is not loaded
    assert state.model_reports == {
        "tiny-a": ModelReport("loaded", True, True, 2, requests_processing=1.0, requests_waiting=2.0),
        "tiny-b": ModelReport("unloaded", False, False, 2),  # --parallel 2
    }
    # Nothing else: a GET without autoload=false would load tiny-b, and /slots would wake a sleeping model.
    assert sorted(asked) == ["/health", f"/metrics{QUERY}", "/props", f"/props{QUERY}", "/v1/models"]


@pytest.mark.parametrize(
    "answer", [Reply(400, b""), Reply(200, b"[]"), Reply(200, b'{"total_slots": 0}'), TimeoutError()]
)
async def test_without_the_pages_of_a_model_its_slots_follow_from_its_arguments(answer: Reply | Exception) -> None:
    state = await backend({**ROUTER, f"/props{QUERY}": answer, f"/metrics{QUERY}": answer}).fetch_state()
    assert state.model_reports["tiny-a"] == ModelReport("loaded", True, True, 2)


def router_with(*arguments: object, value: str = "loaded") -> dict[str, Reply | Exception]:
    models = [{"id": "x y/z", "owned_by": "llamacpp", "status": {"value": value, "args": arguments}}]
    return {**ROUTER, "/v1/models": Reply(200, json.dumps({"data": models}).encode())}


@pytest.mark.parametrize(
    ("arguments", "slots"),
    [
        (("llama-server", "-np", "3"), 3),
        (("llama-server", "--parallel", "-1"), 4),
        (("llama-server", "--parallel"), 4),
        (("llama-server", "--parallel", 7), 4),
        ((), 4),
    ],
)
async def test_a_model_that_was_never_loaded_has_the_slots_that_its_arguments_state(
    arguments: tuple[object, ...], slots: int
) -> None:
    state = await backend(router_with(*arguments, value="unloaded")).fetch_state()
    assert state.model_reports["x y/z"].capacity == slots


async def test_a_model_that_may_sleep_is_not_asked_for_its_load() -> None:
    for seconds, is_asked in (("600", False), ("-1", True)):
        asked: list[str] = []
        await backend(router_with("llama-server", "--sleep-idle-seconds", seconds), asked).fetch_state()
        assert ("/metrics?model=x%20y%2Fz&autoload=false" in asked) is is_asked
        assert "/props?model=x%20y%2Fz&autoload=false" in asked


async def test_a_sleeping_model_takes_a_place_but_is_not_ready() -> None:
    asked: list[str] = []
    state = await backend(router_with(value="sleeping"), asked).fetch_state()
    assert state.model_reports["x y/z"] == ModelReport("sleeping", in_memory=True, is_ready=False, capacity=4)
    assert not [path for path in asked if path.startswith("/metrics")]


@pytest.mark.parametrize(
    ("props", "most"),
    [
        (b'{"max_instances": 2, "models_autoload": true}', 2),
        (b'{"max_instances": 2, "models_autoload": false}', math.inf),  # requests load no models
        (b'{"max_instances": 0}', math.inf),
        (b'{"max_instances": -1}', None),
        (b"{}", None),
    ],
)
async def test_the_number_of_models_in_memory_is_reported(props: bytes, most: float | None) -> None:
    state = await backend({**ROUTER, "/props": Reply(200, props)}).fetch_state()
    assert state.most_models == most


async def test_without_a_models_list_the_handling_of_names_is_unknown() -> None:
    state = await backend({**SINGLE, "/v1/models": TimeoutError()}).fetch_state()
    assert (state.ready, state.models, state.model_names) == (True, None, ModelNames.UNKNOWN)


async def test_the_load_is_processing_plus_deferred() -> None:
    assert await backend({**SINGLE, "/metrics": metrics("2", "3")}).fetch_metrics() == (5.0, True)
    assert await backend({**SINGLE, "/metrics": metrics("7", "3")}).fetch_metrics() == (10.0, False)


def test_connections_are_not_kept_alive() -> None:
    assert not LlamaCppBackend.reuses_connections


def prompt(text: str) -> Reply:
    return Reply(200, json.dumps({"prompt": text}).encode())


CONTINUES = {**SINGLE, "/apply-template": prompt("<user>a<assistant>begun")}


@pytest.mark.parametrize(
    ("reply", "continues"),
    [
        (CONTINUES["/apply-template"], True),
        (prompt("<user>a<assistant>begun<end><assistant>"), False),
        (Reply(200, b"[]"), False),
        (Reply(404, b""), False),
        (TimeoutError(), False),
    ],
)
async def test_messages_are_continued_if_a_prompt_ends_with_the_begun_answer(
    reply: Reply | Exception, continues: bool
) -> None:
    state = await backend({**SINGLE, "/apply-template": reply}).fetch_state()
    assert (Api.MESSAGES in state.continued_apis) is continues
    assert Api.COMPLETIONS in state.continued_apis


async def test_it_is_asked_once_for_each_process_whether_it_continues_messages() -> None:
    asked: list[str] = []
    answers: dict[str, Reply | Exception] = {**CONTINUES}
    engine = backend(answers, asked)
    for _ in range(3):
        assert Api.MESSAGES in (await engine.fetch_state()).continued_apis
    assert asked.count("/apply-template") == 1

    answers["/health"] = Reply(503, b"")
    await engine.fetch_state()
    answers["/health"] = HEALTHY
    await engine.fetch_state()
    assert asked.count("/apply-template") == 2

    answers["/metrics"] = Reply(200, METRICS.body.replace(b"n_decode_total 206", b"n_decode_total 2"))
    await engine.fetch_state()
    assert asked.count("/apply-template") == 3


async def test_a_sleeping_server_is_not_woken_by_the_question() -> None:
    asked: list[str] = []
    answers: dict[str, Reply | Exception] = {
        **CONTINUES,
        "/props": Reply(200, PROPS.body.replace(b'"is_sleeping":false', b'"is_sleeping":true')),
    }
    assert Api.MESSAGES not in (await backend(answers, asked).fetch_state()).continued_apis
    assert "/apply-template" not in asked


async def test_a_server_that_did_not_answer_is_asked_again() -> None:
    answers: dict[str, Reply | Exception] = {**CONTINUES, "/apply-template": TimeoutError()}
    engine = backend(answers)
    await engine.fetch_state()
    answers["/apply-template"] = CONTINUES["/apply-template"]
    assert Api.MESSAGES in (await engine.fetch_state()).continued_apis


CAPABILITIES = {"chat_template_caps": {"supports_preserve_reasoning": False}}


@pytest.mark.parametrize(
    ("props", "shown"),
    [
        ({**CAPABILITIES, "default_generation_settings": {"params": {"reasoning_format": "none"}}}, True),
        ({**CAPABILITIES, "default_generation_settings": {"params": {"reasoning_format": "deepseek-legacy"}}}, False),
        ({**CAPABILITIES, "default_generation_settings": {"params": None}}, False),  # a router
        ({"chat_template_caps": {}, "default_generation_settings": {"params": {"reasoning_format": "none"}}}, False),
        ({"default_generation_settings": {"params": {"reasoning_format": "none"}}}, False),  # an older build
        ({"total_slots": 3, "chat_template_caps": 5}, False),
        ({}, False),
    ],
)
async def test_replies_are_assembled_only_for_builds_that_are_known(props: dict[str, object], shown: bool) -> None:
    body = json.dumps({"total_slots": 3, **props}).encode()
    state = await backend({**SINGLE, "/props": Reply(200, body)}).fetch_state()
    assert (state.shows_replies_in_streams, state.capacity) == (shown, 3)
