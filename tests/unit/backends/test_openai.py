"""The fallback engine, against made-up replies."""

from __future__ import annotations

import pytest

from inference_engine_proxy_server.backends.base import ModelNames, Reply, Thresholds, UnreadableState
from inference_engine_proxy_server.backends.openai import OpenAIBackend
from recorded import answering

MODELS = Reply(200, b'{"object": "list", "data": [{"id": "m", "owned_by": "unknown-engine"}]}')


def backend(answers: dict[str, Reply | Exception]) -> OpenAIBackend:
    return OpenAIBackend("http://b", answering(answers), Thresholds(requests_processing=6, requests_waiting=3))


async def test_a_healthy_server_is_ready_with_unknown_load() -> None:
    state = await backend({"/health": Reply(200, b""), "/v1/models": MODELS}).fetch_state()
    assert (state.ready, state.live, state.reason) == (True, True, "")
    assert (state.requests_processing, state.requests_waiting) == (None, None)
    assert (state.capacity, state.progress) == (None, None)
    assert [model["id"] for model in state.models or ()] == ["m"]
    assert state.model_names is ModelNames.UNKNOWN


@pytest.mark.parametrize(
    ("length", "contexts"), [("8192", {"m": 8192}), ("null", {}), ("0", {}), ("-1", {}), ("true", {}), ('"8192"', {})]
)
async def test_only_a_positive_integer_is_a_context_length(length: str, contexts: dict[str, int]) -> None:
    models = Reply(200, b'{"data": [{"id": "m", "max_model_len": %b}, {"id": "n"}]}' % length.encode())
    state = await backend({"/health": Reply(200, b""), "/v1/models": models}).fetch_state()
    assert state.contexts == contexts


@pytest.mark.parametrize("name", ["max_model_len", "context_length", "max_context_length"])
async def test_the_context_is_read_under_each_name_that_servers_use(name: str) -> None:
    models = Reply(200, b'{"data": [{"id": "m", "%b": 8192, "other": 1}]}' % name.encode())
    assert (await backend({"/v1/models": models}).fetch_state()).contexts == {"m": 8192}


@pytest.mark.parametrize("path", ["/health", "/v1/models"])
async def test_a_server_whose_limit_of_requests_is_reached_is_busy(path: str) -> None:
    state = await backend({path: Reply(429, b"")}).fetch_state()
    assert (state.ready, state.live, state.reason) == (False, True, f"busy: GET {path} answered 429")


@pytest.mark.parametrize("status", [401, 403, 404, 405, 501])
async def test_without_a_health_page_a_models_list_makes_it_live(status: int) -> None:
    state = await backend({"/health": Reply(status, b""), "/v1/models": MODELS}).fetch_state()
    assert (state.ready, state.live) == (True, True)
    assert state.models


@pytest.mark.parametrize("answer", [Reply(401, b""), Reply(403, b""), Reply(200, b"<html>")])
async def test_a_models_list_that_is_forbidden_or_unreadable_makes_it_live_too(answer: Reply) -> None:
    state = await backend({"/v1/models": answer}).fetch_state()
    assert (state.ready, state.live, state.models) == (True, True, None)


async def test_a_slow_models_list_leaves_it_ready() -> None:
    state = await backend({"/health": Reply(200, b""), "/v1/models": TimeoutError()}).fetch_state()
    assert (state.ready, state.models) == (True, None)


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ({"/health": Reply(503, b"")}, "GET /health answered 503, perhaps it is starting"),
        ({"/health": Reply(500, b"")}, "GET /health answered 500"),
        ({"/health": Reply(302, b"")}, "GET /health answered 302"),
        ({"/v1/models": Reply(503, b"")}, "GET /v1/models answered 503, perhaps it is starting"),
        ({}, "GET /v1/models answered 404: it is no engine, or its URL lacks a path"),
    ],
)
async def test_other_statuses_make_it_not_live(answers: dict[str, Reply | Exception], reason: str) -> None:
    state = await backend({"/v1/models": MODELS, **answers} if "/health" in answers else answers).fetch_state()
    assert (state.ready, state.live, state.reason) == (False, False, reason)


@pytest.mark.parametrize("path", ["/health", "/v1/models"])
@pytest.mark.parametrize("error", [TimeoutError, ConnectionRefusedError, UnreadableState])
async def test_a_missing_reply_on_the_health_path_raises(path: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        await backend({path: error()}).fetch_state()


async def test_a_ready_server_never_reports_a_load_of_zero() -> None:
    with pytest.raises(UnreadableState):
        await backend({"/health": Reply(200, b"")}).fetch_metrics()
    assert await backend({"/health": Reply(503, b"")}).fetch_metrics() == (0.0, False)
