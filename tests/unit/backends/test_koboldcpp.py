"""KoboldCpp, beyond the contract of all engines."""

from __future__ import annotations

import pytest

from inference_engine_proxy_server.backends.base import ModelStatus, Reply, Thresholds
from inference_engine_proxy_server.backends.koboldcpp import KoboldCppBackend
from recorded import answering, recorded

IDLE: dict[str, Reply | Exception] = {
    "/api/extra/version": recorded("koboldcpp", "version"),
    "/v1/models": recorded("koboldcpp", "v1-models"),
    "/api/extra/perf": recorded("koboldcpp", "perf"),
    "/props": recorded("koboldcpp", "props"),
}


def backend(**answers: Reply | Exception) -> KoboldCppBackend:
    paths = {"perf": "/api/extra/perf", "props": "/props", "models": "/v1/models"}
    changed = {paths[name]: answer for name, answer in answers.items()}
    return KoboldCppBackend("http://b", answering({**IDLE, **changed}), Thresholds(6, 3))


@pytest.mark.parametrize(("idle", "queue", "load"), [(1, 0, 0.0), (0, 0, 1.0), (0, 5, 6.0)])
async def test_its_load_is_one_request_while_it_is_not_idle_and_those_that_wait(
    idle: int, queue: int, load: float
) -> None:
    kobold = backend(perf=Reply(200, b'{"queue": %d, "idle": %d}' % (queue, idle)))
    assert await kobold.fetch_metrics() == (load, True)


@pytest.mark.parametrize("name", ["inactive", "koboldcpp/inactive"])
async def test_a_server_without_a_text_model_lists_none(name: str) -> None:
    listing = b'{"object":"list","data":[{"id":"%b","owned_by":"koboldcpp"}]}' % name.encode()
    state = await backend(models=Reply(200, listing)).fetch_state()
    assert (state.ready, state.models, state.contexts) == (True, (), {})


async def test_a_router_stays_one_without_an_answer() -> None:
    answers = {**IDLE, "/props": recorded("koboldcpp-router", "props")}
    kobold = KoboldCppBackend("http://b", answering(answers), Thresholds(6, 3))
    assert (await kobold.fetch_state()).most_models == 1
    answers["/props"] = TimeoutError()
    assert (await kobold.fetch_state()).most_models == 1
    answers["/api/extra/version"] = Reply(502, b"")
    assert not (await kobold.fetch_state()).live
    answers["/api/extra/version"] = IDLE["/api/extra/version"]
    assert (await kobold.fetch_state()).most_models is None


async def test_a_router_has_the_first_of_its_models_in_memory() -> None:
    state = await backend(
        models=recorded("koboldcpp-router", "v1-models"), props=recorded("koboldcpp-router", "props")
    ).fetch_state()
    loaded, *others = state.model_reports.values()
    assert (loaded.in_memory, loaded.requests_processing, loaded.capacity) == (True, 0.0, 1)
    assert [report.in_memory for report in others] == [False, False]
    assert state.most_models == 1
    assert state.statuses == {"llama.kcpps": ModelStatus.COLD, "qwen.kcpps": ModelStatus.COLD}
