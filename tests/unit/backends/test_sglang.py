"""SGLang: a path that a version lacks is asked for once, until another version may have taken over the address."""

from __future__ import annotations

import pytest

from inference_engine_proxy_server.backends.base import Reply, Thresholds, UnreadableState
from inference_engine_proxy_server.backends.sglang import SGLangBackend
from recorded import answering

LOADS = "/v1/loads?include=core"
MODELS = Reply(200, b'{"data": [{"id": "m", "owned_by": "sglang", "max_model_len": 4096}]}')
LOAD = Reply(200, b'{"loads": [{"num_running_reqs": 1, "num_waiting_reqs": 0}]}')
OLD_LOAD = Reply(200, b'[{"num_reqs": 3, "num_waiting_reqs": 1}]')
OLD: dict[str, Reply | Exception] = {"/v1/models": MODELS, "/get_load": OLD_LOAD}


def backend(answers: dict[str, Reply | Exception], asked: list[str]) -> SGLangBackend:
    return SGLangBackend("http://b", answering(answers, asked), Thresholds(6, 3))


async def test_a_path_that_the_version_lacks_is_asked_for_once() -> None:
    asked: list[str] = []
    old = backend(dict(OLD), asked)
    for _ in range(3):
        state = await old.fetch_state()
        assert (state.requests_processing, state.requests_waiting) == (2, 1)
    assert (asked.count("/ready"), asked.count(LOADS), asked.count("/get_load")) == (1, 1, 3)


async def test_another_version_at_the_address_is_asked_for_everything_again() -> None:
    asked: list[str] = []
    answers: dict[str, Reply | Exception] = dict(OLD)
    changing = backend(answers, asked)
    assert (await changing.fetch_state()).requests_processing == 2
    answers["/v1/models"] = Reply(503, b"")
    assert not (await changing.fetch_state()).live
    answers |= {"/ready": Reply(200, b""), "/v1/models": MODELS, LOADS: LOAD}
    assert (await changing.fetch_state()).requests_processing == 1
    assert asked.count("/ready") == 2


@pytest.mark.parametrize("error", [TimeoutError(), ConnectionResetError(), UnreadableState()])
async def test_a_load_that_does_not_come_is_not_asked_for_in_the_old_way(error: Exception) -> None:
    asked: list[str] = []
    state = await backend({"/ready": Reply(200, b""), "/v1/models": MODELS, LOADS: error}, asked).fetch_state()
    assert (state.ready, state.requests_processing) == (True, None)
    assert asked == ["/ready", "/v1/models", LOADS]


async def test_a_server_that_was_ready_before_is_not_starting() -> None:
    answers: dict[str, Reply | Exception] = {"/ready": Reply(503, b""), "/v1/models": MODELS}
    paused = backend(answers, [])
    assert (await paused.fetch_state()).starting
    answers["/ready"] = Reply(200, b"")
    assert (await paused.fetch_state()).ready
    answers["/ready"] = Reply(503, b"")
    assert not (await paused.fetch_state()).starting
