"""LM Studio, beyond the contract of all engines."""

from __future__ import annotations

import json

from inference_engine_proxy_server.backends.base import BackendState, Reply, Thresholds
from inference_engine_proxy_server.backends.lmstudio import LMStudioBackend
from recorded import answering, recorded

UNEXPECTED = Reply(200, b'{"error":"Unexpected endpoint or method. (GET /api/v1/models)"}')
OLD: dict[str, Reply | Exception] = {
    "/v1/models": recorded("lmstudio-0.3", "v1-models"),
    "/api/v1/models": UNEXPECTED,
    "/api/v0/models": recorded("lmstudio-0.3", "api-v0-models"),
}


def backend(answers: dict[str, Reply | Exception], asked: list[str] | None = None) -> LMStudioBackend:
    return LMStudioBackend("http://b", answering(answers, asked), Thresholds(6, 3))


async def state_with(listed: list[str], **instances: dict[str, tuple[int, int]]) -> BackendState:
    """The state of a server with these names, and the context and slots of each loaded instance of each model."""
    models = [
        {
            "key": key,
            "loaded_instances": [
                {"id": name, "config": {"context_length": context, "parallel": slots}}
                for name, (context, slots) in loaded.items()
            ],
        }
        for key, loaded in instances.items()
    ]
    listing = {"object": "list", "data": [{"id": name, "owned_by": "organization_owner"} for name in listed]}
    return await backend(
        {
            "/v1/models": Reply(200, json.dumps(listing).encode()),
            "/api/v1/models": Reply(200, json.dumps({"models": models}).encode()),
        }
    ).fetch_state()


async def test_slots_and_context_are_those_of_the_loaded_instance() -> None:
    state = await state_with(["a", "b"], a={"a": (8192, 4)}, b={})
    assert {name: report.capacity for name, report in state.model_reports.items()} == {"a": 4, "b": None}
    assert state.contexts == {"a": 8192}


async def test_two_instances_of_a_model_have_their_own_slots_and_contexts() -> None:
    state = await state_with(["a", "a:2"], a={"a": (8192, 4), "a:2": (4096, 1)})
    assert {name: report.capacity for name, report in state.model_reports.items()} == {"a": 4, "a:2": 1}
    assert state.contexts == {"a": 8192, "a:2": 4096}


async def test_an_instance_with_a_name_of_its_own_serves_the_name_of_its_model_too() -> None:
    state = await state_with(["a", "mine"], a={"mine": (4096, 2)})
    assert state.contexts == {"a": 4096, "mine": 4096}
    assert state.statuses == {}


async def test_it_is_expected_to_hold_as_many_models_as_it_holds_now() -> None:
    assert (await state_with(["a", "b"], a={}, b={})).most_models == 1
    assert (await state_with(["a", "b"], a={"a": (1, 1)}, b={"b": (1, 1)})).most_models == 2


async def test_the_form_of_its_api_that_answered_is_asked_from_then_on() -> None:
    asked: list[str] = []
    lmstudio = backend({**OLD}, asked)
    for _ in range(3):
        await lmstudio.fetch_state()
    assert asked.count("/api/v1/models") == 1  # each question that it does not know is an error in its log
    assert asked.count("/api/v0/models") == 3


async def test_after_a_failure_it_may_be_a_newer_version() -> None:
    answers = {**OLD}
    asked: list[str] = []
    lmstudio = backend(answers, asked)
    await lmstudio.fetch_state()
    answers["/v1/models"] = Reply(502, b"")
    assert not (await lmstudio.fetch_state()).live
    answers["/v1/models"] = OLD["/v1/models"]
    await lmstudio.fetch_state()
    assert asked.count("/api/v1/models") == 2


async def test_without_an_answer_of_its_own_api_the_previous_one_holds() -> None:
    answers = {**OLD}
    lmstudio = backend(answers)
    before = await lmstudio.fetch_state()
    answers["/api/v0/models"] = TimeoutError()
    assert (await lmstudio.fetch_state()).model_reports == before.model_reports != {}


async def test_a_missing_answer_does_not_mean_an_older_version() -> None:
    asked: list[str] = []
    await backend({**OLD, "/api/v1/models": TimeoutError()}, asked).fetch_state()
    assert "/api/v0/models" not in asked
