"""The contract of every engine: what its servers' replies mean, and that no reply at all makes it fail otherwise.

The replies are in ``recorded/``, one directory for each kind of server; its README describes how to add one.
"""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import Mapping
from enum import Enum
from typing import Any

import pytest

from inference_engine_proxy_server.backends.base import (
    BackendState,
    BaseBackend,
    Probe,
    Reply,
    Thresholds,
    UnreadableState,
    non_negative,
)
from inference_engine_proxy_server.backends.prometheus_text import sum_samples
from inference_engine_proxy_server.backends.registry import Engines, discover_engines, identify
from inference_engine_proxy_server.backends.reply_facts import read_facts, read_tokens
from recorded import answering, recorded
from recorded.cases import CASES, SITUATIONS, Answer, Case
from recorded.damaged import USELESS, variants

ENGINES = discover_engines()
BUILT_IN = tuple(dict.fromkeys((*ENGINES.by_provider.values(), ENGINES.fallback)))
THRESHOLDS = Thresholds(requests_processing=6, requests_waiting=3)
STATED = ("models", "contexts", "capacity", "requests_processing", "requests_waiting")
"""What the idle state of each case must have, or name as unknown."""
WITH_SITUATION = [(case, name) for case in CASES for name in case.situations if not case.situations[name].absent]


class ReadmeBackend(BaseBackend):
    """The smallest complete engine, from docs/adding-an-engine.md."""

    providers = ("readme",)

    async def fetch_metrics(self) -> tuple[float, bool]:
        reply = await self.get("/metrics")
        load = sum_samples(reply.body, ["vllm:num_requests_running"]).get("vllm:num_requests_running")
        if reply.status != 200 or load is None:
            raise UnreadableState(f"GET /metrics answered {reply.status}")
        return load, True


SUBJECTS: dict[str, tuple[type[BaseBackend], Mapping[str, Answer]]] = {
    **{case.name: (ENGINES.by_provider[case.engine], case.ready.answers) for case in CASES},
    "readme": (ReadmeBackend, next(case for case in CASES if case.name == "vllm").ready.answers),
}


def make(engine: type[BaseBackend], answers: Mapping[str, Answer]) -> BaseBackend:
    return engine("http://b", answering(answers), THRESHOLDS)


def check(state: BackendState) -> None:
    assert state.live or not state.ready
    assert state.ready == (not state.reason)
    assert not (state.starting and state.live)
    assert state.capacity is None or (type(state.capacity) is int and state.capacity >= 1)
    for count in (state.requests_processing, state.requests_waiting, state.progress, state.context_use):
        assert count == non_negative(count)
    assert all(math.isfinite(figure) for figure in state.figures.values())
    assert state.models is None or all(isinstance(model["id"], str) for model in state.models)
    assert all(type(length) is int and length > 0 for length in state.contexts.values())
    assert state.engine_version is None or isinstance(state.engine_version, str)
    assert state.memory_tokens is None or (type(state.memory_tokens) is int and state.memory_tokens > 0)


def told(state: BackendState, attribute: str) -> object:
    """An attribute of ``state`` in the words of a case."""
    value = getattr(state, attribute)
    if attribute == "models":
        return None if value is None else [model["id"] for model in value]
    if isinstance(value, Enum):
        return value.name.lower()
    if isinstance(value, Mapping):
        return {key: one.name.lower() if isinstance(one, Enum) else one for key, one in value.items()}
    return value


def assert_tells(state: BackendState, expected: Mapping[str, Any]) -> None:
    check(state)
    wanted = {attribute: value for attribute, value in expected.items() if attribute != "unknown"}
    assert {attribute: told(state, attribute) for attribute in wanted} == wanted
    for attribute in expected.get("unknown", ()):
        assert told(state, attribute) in (None, {}, "unknown"), attribute


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_an_idle_server_is_understood(case: Case) -> None:
    state = await make(ENGINES.by_provider[case.engine], case.ready.answers).fetch_state()
    assert (state.ready, state.live, state.starting) == (True, True, False)
    assert_tells(state, case.ready.state)


@pytest.mark.parametrize(
    ("case", "situation"), WITH_SITUATION, ids=[f"{case.name}-{of}" for case, of in WITH_SITUATION]
)
async def test_each_situation_is_understood(case: Case, situation: str) -> None:
    wanted = case.situations[situation]
    backend = make(ENGINES.by_provider[case.engine], wanted.answers)
    if wanted.error:
        with pytest.raises((OSError, UnreadableState)) as caught:
            await backend.fetch_state()
        assert type(caught.value).__name__ == wanted.error
    else:
        assert_tells(await backend.fetch_state(), wanted.state)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_each_case_says_what_it_is_made_of(case: Case) -> None:
    assert case.version
    assert case.sources
    assert [name for name in STATED if name not in case.ready.state and name not in case.ready.state["unknown"]] == []
    assert [name for name in SITUATIONS if name not in case.situations] == []
    assert all(one.absent or one.error or one.state for one in case.situations.values())


def test_every_built_in_engine_has_a_case() -> None:
    assert {ENGINES.by_provider[case.engine] for case in CASES} == set(BUILT_IN)
    assert {case.engine for case in CASES} == {engine.providers[0] for engine in BUILT_IN}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_server_is_identified_with_few_questions(case: Case) -> None:
    engine = ENGINES.by_provider[case.engine]
    assert await identify(ENGINES, Probe(answering(case.ready.answers))) is (
        engine if case.is_identified else ENGINES.fallback
    )
    asked: list[str] = []
    alone = Engines(dict.fromkeys(engine.providers, engine), ENGINES.fallback, (engine,))
    await identify(alone, Probe(answering(case.ready.answers, asked)))
    assert len(asked) <= case.questions


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_no_other_engine_recognizes_a_server(case: Case) -> None:
    probe = Probe(answering(case.ready.answers))
    others = [engine for engine in ENGINES.recognizing if engine is not ENGINES.by_provider[case.engine]]
    assert [engine for engine in others if await engine.recognizes(probe)] == []


async def test_an_unknown_server_is_asked_few_questions_once() -> None:
    asked: list[str] = []
    listing = Reply(200, b'{"data": [{"id": "m", "owned_by": "nobody"}]}')
    assert await identify(ENGINES, Probe(answering({"/v1/models": listing}, asked))) is ENGINES.fallback
    assert len(asked) == len(set(asked)) <= 12


@pytest.mark.parametrize("engine", ENGINES.recognizing, ids=lambda engine: engine.__name__)
async def test_no_engine_recognizes_a_useless_answer(engine: type[BaseBackend]) -> None:
    for name, answer in USELESS.items():

        async def get(path: str, json_body: bytes | None = None, answer: Answer = answer) -> Reply:
            if isinstance(answer, Exception):
                raise answer
            return answer

        assert not await engine.recognizes(Probe(get)), name


@pytest.mark.parametrize("name", SUBJECTS)
async def test_any_answer_on_one_path_gives_a_consistent_state_or_a_documented_error(name: str) -> None:
    engine, answers = SUBJECTS[name]
    for path, usual in answers.items():
        for answer in variants(usual):
            try:
                check(await make(engine, {**answers, path: answer}).fetch_state())
            except (UnreadableState, OSError):  # documented; TimeoutError is an OSError
                continue


@pytest.mark.parametrize("name", SUBJECTS)
async def test_any_answer_on_all_paths_gives_a_consistent_state_or_a_documented_error(name: str) -> None:
    engine, answers = SUBJECTS[name]
    for answer in USELESS.values():
        backend = make(engine, dict.fromkeys(answers, answer))
        for _ in range(2):  # state that the first poll leaves must not break the second
            try:
                check(await backend.fetch_state())
            except (UnreadableState, OSError):
                continue


@pytest.mark.parametrize("name", SUBJECTS)
async def test_any_answer_gives_a_valid_load_or_a_documented_error(name: str) -> None:
    engine, answers = SUBJECTS[name]
    for path, usual in answers.items():
        for answer in variants(usual):
            try:
                load, ready = await make(engine, {**answers, path: answer}).fetch_metrics()
            except (UnreadableState, OSError):
                continue
            assert isinstance(ready, bool)
            # For that of docs/adding-an-engine.md, fetch_state checks the load.
            assert engine is ReadmeBackend or non_negative(load) is not None


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_only_the_health_paths_decide_readiness(case: Case) -> None:
    engine = ENGINES.by_provider[case.engine]
    for path in case.ready.answers.keys() - case.health:
        for answer in (TimeoutError(), ConnectionResetError(), Reply(500, b""), Reply(200, b"\x00")):
            assert (await make(engine, {**case.ready.answers, path: answer}).fetch_state()).ready, (path, answer)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_server_whose_health_page_fails_is_not_ready(case: Case) -> None:
    for path, status in itertools.product(case.health, (500, 502, 302)):
        state = await make(
            ENGINES.by_provider[case.engine], {**case.ready.answers, path: Reply(status, b"")}
        ).fetch_state()
        check(state)
        assert not state.live, (path, status)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_a_missing_health_reply_raises(case: Case) -> None:
    for path, error in itertools.product(case.health, (TimeoutError(), ConnectionRefusedError(), UnreadableState())):
        with pytest.raises(type(error)):
            await make(ENGINES.by_provider[case.engine], {**case.ready.answers, path: error}).fetch_state()


@pytest.mark.parametrize(
    ("case", "tokens"),
    [pytest.param(case, tokens, id=f"{case.name}-{tokens['reply']}") for case in CASES for tokens in case.tokens],
)
def test_token_counts_are_read_from_replies(case: Case, tokens: Mapping[str, Any]) -> None:
    body = recorded(case.name, tokens["reply"]).body
    expected = (tokens.get("prompt"), tokens.get("cached"), tokens.get("answer"))
    assert read_facts(body)[:3] == expected
    assert read_tokens(body) == expected


@pytest.mark.parametrize("name", SUBJECTS)
async def test_polling_leaves_no_task_behind(name: str) -> None:
    engine = SUBJECTS[name][0]
    hanging = asyncio.Event()

    async def get(path: str, json_body: bytes | None = None) -> Reply:
        await hanging.wait()
        raise AssertionError

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(engine("http://b", get, THRESHOLDS).fetch_metrics(), 0.02)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@pytest.mark.parametrize("engine", [*BUILT_IN, ReadmeBackend], ids=lambda engine: engine.__name__)
def test_providers_are_names(engine: type[BaseBackend]) -> None:
    assert isinstance(engine.providers, tuple)
    assert all(provider and isinstance(provider, str) for provider in engine.providers)
