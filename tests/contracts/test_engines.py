"""The contract of every engine: what its servers' replies mean, and that no reply at all makes it fail otherwise.

The replies are in ``recorded/``, one directory for each kind of server; its README describes how to add one.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
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

ENGINES = discover_engines()
BUILT_IN = tuple(dict.fromkeys((*ENGINES.by_provider.values(), ENGINES.fallback)))
THRESHOLDS = Thresholds(requests_processing=6, requests_waiting=3)
STATED = ("models", "contexts", "capacity", "requests_processing", "requests_waiting")
"""What the idle state of each case must have, or name as unknown."""
WITH_SITUATION = [(case, name) for case in CASES for name in case.situations if not case.situations[name].absent]


class ReadmeBackend(BaseBackend):
    """The smallest complete engine, from README.md."""

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
USELESS: dict[str, Answer] = {
    "timeout": TimeoutError(),
    "refused": ConnectionRefusedError(),
    "reset": ConnectionResetError(),
    "name not known": OSError("Name or service not known"),
    "not HTTP": UnreadableState("not HTTP"),
    "empty": Reply(200, b""),
    "no content": Reply(204, b""),
    "redirect": Reply(302, b""),
    "key required": Reply(401, b'{"error":"Unauthorized"}'),
    "not found": Reply(404, b'{"detail":"Not Found"}'),
    "broken": Reply(500, b"Internal Server Error"),
    "loading": recorded("llama-server", "health-loading"),
    "unknown status": Reply(999, b""),
    "HTML": Reply(200, b"<!doctype html><html><body>Welcome</body></html>"),
    "1 MiB of junk": Reply(200, bytes(range(256)) * 4096),
    "1 MiB of nesting": Reply(200, b'{"data":[{"id":' + b"[" * 2**20),
    "1 MiB of hidden nesting": Reply(200, b'{"is_paused":true,"x":' + b'{"a":' * 2**18),
    "NUL": Reply(200, b"\x00" * 4096),
    "not UTF-8": Reply(200, b'{"data":[{"id":"\xff\xfe","owned_by":"\xc3"}]}'),
    "JSON null": Reply(200, b"null"),
    "JSON number": Reply(200, b"1" * 5000),
    "JSON array": Reply(200, b"[[], {}, 1]"),
    "empty array": Reply(200, b"[]"),
    "empty object": Reply(200, b"{}"),
    "JSON of another shape": Reply(200, b'{"data": {"id": 1}, "is_paused": 7, "total_slots": -3}'),
    "JSON entries of another shape": Reply(200, b'{"data": [{"id": 1}, {"id": "m", "owned_by": [], "status": 3}]}'),
    "half a JSON": Reply(200, b'{"data": [{"id": "m"'),
}
_SAMPLE = re.compile(rb"(?m)^([a-zA-Z_:][\w:]*(?:\{.*\})?) \S+")
_ODD_VALUES: tuple[object, ...] = (-5, 0, 10**400, 1.5, "7", None, [], {}, True)


def spoiled(body: bytes) -> Iterator[bytes]:
    """Variants of a page: halves of it, and odd values in its metrics or its JSON."""
    yield body[: len(body) // 2]
    yield body[len(body) // 2 :]
    try:
        document = json.loads(body)
    except ValueError:
        for value in (b"NaN", b"+Inf", b"-Inf", b"-5", b"0", b"0.5", b"1e308", b"", b"x", b"1_000", b"1e400"):
            yield _SAMPLE.sub(rb"\1 " + value, body)
        signs = itertools.cycle((b" +Inf", b" -Inf"))
        yield _SAMPLE.sub(lambda found: found[1] + next(signs), body)
        yield _SAMPLE.sub(lambda found: found[0] + b"\n" + found[1] + b" +Inf\n" + found[1] + b" -Inf", body)
    else:
        for odd in _ODD_VALUES:
            yield from (json.dumps(spoiled_once).encode() for spoiled_once in with_one_value(document, odd))


def with_one_value(value: Any, odd: object) -> Iterator[Any]:
    """Copies of ``value``, each with ``odd`` in place of one string, number, constant, list or object in it."""
    yield odd
    if isinstance(value, dict):
        yield from ({**value, key: other} for key, one in value.items() for other in with_one_value(one, odd))
    elif isinstance(value, list):
        for at, one in enumerate(value):
            yield from ([*value[:at], other, *value[at + 1 :]] for other in with_one_value(one, odd))


def variants(answer: Answer) -> Iterator[Answer]:
    """Every useless answer, and spoiled forms of a useful one."""
    yield from USELESS.values()
    if isinstance(answer, Reply) and answer.body:
        yield from (Reply(answer.status, body, answer.fields) for body in spoiled(answer.body))


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
            # For the README's engine, fetch_state checks the load.
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
