from __future__ import annotations

import math

import pytest

from inference_engine_proxy_server.backends.base import (
    BackendState,
    BaseBackend,
    Reply,
    Thresholds,
    UnreadableState,
    non_negative,
    parse_models,
)
from recorded import answering, recorded

THRESHOLDS = Thresholds(requests_processing=6, requests_waiting=3)


class Fixed(BaseBackend):
    """An engine with nothing but the one method that the README asks for."""

    load, ready = 2.0, True

    async def fetch_metrics(self) -> tuple[float, bool]:
        return self.load, self.ready


async def test_an_engine_that_tells_only_its_load_still_tells_its_models() -> None:
    state = await Fixed("http://b", answering({"/v1/models": recorded("vllm", "v1-models")}), THRESHOLDS).fetch_state()
    assert (state.ready, state.live, state.reason, state.requests_processing) == (True, True, "", 2.0)
    assert [model["id"] for model in state.models or ()] == ["tiny"]


async def test_an_engine_that_says_it_is_not_ready_is_live_and_has_a_reason() -> None:
    backend = Fixed("http://b", answering({}), THRESHOLDS)
    backend.ready = False
    state = await backend.fetch_state()
    assert (state.ready, state.live, state.models) == (False, True, None)
    assert state.reason


@pytest.mark.parametrize("load", [math.nan, math.inf, -1.0])
async def test_a_load_that_no_backend_can_have_is_no_load(load: float) -> None:
    backend = Fixed("http://b", answering({}), THRESHOLDS)
    backend.load = load
    assert (await backend.fetch_state()).requests_processing is None


@pytest.mark.parametrize(
    ("value", "told"), [(0.0, 0.0), (0.5, 0.5), (None, None), (-0.1, None), (math.nan, None), (-math.inf, None)]
)
def test_only_finite_numbers_from_zero_on_are_told(value: float | None, told: float | None) -> None:
    assert non_negative(value) == told


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (BackendState(ready=True, requests_processing=2, requests_waiting=3), (5.0, True)),
        (BackendState(ready=True, requests_processing=2), (2.0, True)),
        (BackendState(ready=True, requests_waiting=3), (3.0, True)),
        (BackendState(ready=False), (0.0, False)),
        (BackendState(ready=False, requests_processing=9), (9.0, False)),
    ],
)
def test_a_state_tells_its_load(state: BackendState, told: tuple[float, bool]) -> None:
    assert state.load_and_ready() == told


def test_a_ready_state_without_a_load_does_not_pass_for_idle() -> None:
    with pytest.raises(UnreadableState):
        BackendState(ready=True).load_and_ready()


def test_models_without_an_id_are_left_out() -> None:
    body = b'{"object": "list", "data": [{"id": "a", "owned_by": "x"}, {}, {"id": null}, {"id": "b"}]}'
    assert parse_models(body) == ({"id": "a", "owned_by": "x"}, {"id": "b"})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"data": null}',
        b'{"data": {}}',
        b'{"data": [1]}',
        b"<html></html>",
        b'{"data": [{"id": "\xff"}]}',
        b'{"data": [' + b"[" * 100_000,
        b'{"other": ' + b"[" * 100_000,
    ],
    ids=lambda body: repr(body[:20]),
)
def test_what_is_no_models_list_is_unreadable(body: bytes) -> None:
    with pytest.raises(UnreadableState):
        parse_models(body)


@pytest.mark.parametrize(
    "answer", [Reply(503, b""), Reply(200, b"<html>"), TimeoutError(), ConnectionRefusedError(), UnreadableState()]
)
async def test_models_that_are_not_told_now_are_none(answer: Reply | Exception) -> None:
    assert await Fixed("http://b", answering({"/v1/models": answer}), THRESHOLDS).fetch_models() is None
