"""TabbyAPI, beyond the contract of all engines."""

from __future__ import annotations

from inference_engine_proxy_server.backends.base import ModelNames, Probe, Reply, Thresholds
from inference_engine_proxy_server.backends.registry import discover_engines, identify
from inference_engine_proxy_server.backends.tabbyapi import TabbyAPIBackend
from recorded import answering, recorded

LOADED: dict[str, Reply | Exception] = {
    "/health": recorded("tabbyapi", "health"),
    "/v1/model": recorded("tabbyapi", "v1-model"),
    "/v1/models": recorded("tabbyapi", "v1-models"),
}


def backend(answers: dict[str, Reply | Exception], asked: list[str] | None = None) -> TabbyAPIBackend:
    return TabbyAPIBackend("http://b", answering(answers, asked), Thresholds(6, 3))


async def test_only_the_model_in_memory_is_served_whatever_folders_there_are() -> None:
    asked: list[str] = []
    state = await backend({**LOADED}, asked).fetch_state()
    assert [model["id"] for model in state.models or ()] == ["Llama-3.1-8B-exl3"]
    assert state.model_names is ModelNames.ANY
    assert "/v1/models" not in asked


async def test_its_model_is_listed_as_in_the_list_of_models() -> None:
    (model,) = (await backend({**LOADED}).fetch_state()).models or ()
    assert set(model) == {"id", "object", "created", "owned_by"}  # without its prompt template


async def test_a_failed_request_in_the_past_does_not_make_it_unusable() -> None:
    state = await backend({**LOADED, "/health": recorded("tabbyapi", "health-unhealthy")}).fetch_state()
    assert (state.ready, state.figures) == (True, {"health_issues": 1.0})


async def test_a_request_that_makes_it_load_a_model_is_left_alone() -> None:
    """A backend that is not live loses its requests to others."""
    state = await backend({**LOADED, "/v1/model": recorded("tabbyapi", "no-model")}).fetch_state()
    assert (state.ready, state.live, state.models) == (False, True, ())


async def test_it_is_recognized_without_its_key() -> None:
    denied = recorded("tabbyapi", "err-no-key")
    answers = {"/v1/models": denied, "/.well-known/serviceinfo": recorded("tabbyapi", "serviceinfo")}
    assert await identify(discover_engines(), Probe(answering(answers))) is TabbyAPIBackend
