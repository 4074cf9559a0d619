"""The class that engines extend."""

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
    """An engine with only ``fetch_metrics``, as in docs/adding-an-engine.md."""

    load, ready = 2.0, True

    async def fetch_metrics(self) -> tuple[float, bool]:
        return self.load, self.ready


class Rich(BaseBackend):
    """An engine with only ``fetch_state``."""

    def __init__(self, state: BackendState) -> None:
        super().__init__("http://b", answering({}), THRESHOLDS)
        self._state = state

    async def fetch_state(self) -> BackendState:
        return self._state


async def test_an_engine_with_only_fetch_metrics_reports_its_models_too() -> None:
    state = await Fixed("http://b", answering({"/v1/models": recorded("vllm", "v1-models")}), THRESHOLDS).fetch_state()
    assert (state.ready, state.live, state.reason, state.requests_processing) == (True, True, "", 2.0)
    assert [model["id"] for model in state.models or ()] == ["tiny"]


async def test_an_engine_that_is_not_ready_is_live_and_gives_a_reason() -> None:
    backend = Fixed("http://b", answering({}), THRESHOLDS)
    backend.ready = False
    state = await backend.fetch_state()
    assert (state.ready, state.live, state.models) == (False, True, None)
    assert state.reason


@pytest.mark.parametrize("load", [math.nan, math.inf, -1.0])
async def test_an_impossible_load_counts_as_not_reported(load: float) -> None:
    backend = Fixed("http://b", answering({}), THRESHOLDS)
    backend.load = load
    assert (await backend.fetch_state()).requests_processing is None


@pytest.mark.parametrize(
    ("value", "kept"), [(0.0, 0.0), (0.5, 0.5), (None, None), (-0.1, None), (math.nan, None), (-math.inf, None)]
)
def test_only_finite_numbers_from_zero_up_pass(value: float | None, kept: float | None) -> None:
    assert non_negative(value) == kept


@pytest.mark.parametrize(
    ("state", "load"),
    [
        (BackendState(ready=True, requests_processing=2, requests_waiting=3), (5.0, True)),
        (BackendState(ready=True, requests_processing=2), (2.0, True)),
        (BackendState(ready=True, requests_waiting=3), (3.0, True)),
        (BackendState(ready=False), (0.0, False)),
        (BackendState(ready=False, requests_processing=9), (9.0, False)),
    ],
)
async def test_an_engine_with_only_fetch_state_reports_its_load_too(
    state: BackendState, load: tuple[float, bool]
) -> None:
    assert await Rich(state).fetch_metrics() == load


async def test_a_ready_state_without_a_load_does_not_look_idle() -> None:
    with pytest.raises(UnreadableState):
        await Rich(BackendState(ready=True)).fetch_metrics()


def test_an_engine_with_neither_method_cannot_be_created() -> None:
    class Incomplete(BaseBackend):
        pass

    assert (Fixed.is_complete(), Rich.is_complete(), Incomplete.is_complete()) == (True, True, False)
    for engine in (BaseBackend, Incomplete):
        with pytest.raises(TypeError, match="must implement fetch_metrics or fetch_state"):
            engine("http://b", answering({}), THRESHOLDS)


def test_models_without_an_id_are_skipped() -> None:
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
def test_an_invalid_models_list_is_unreadable(body: bytes) -> None:
    with pytest.raises(UnreadableState):
        parse_models(body)


@pytest.mark.parametrize(
    "answer", [Reply(503, b""), Reply(200, b"<html>"), TimeoutError(), ConnectionRefusedError(), UnreadableState()]
)
async def test_models_are_none_when_the_list_cannot_be_read(answer: Reply | Exception) -> None:
    assert await Fixed("http://b", answering({"/v1/models": answer}), THRESHOLDS).fetch_models() is None
