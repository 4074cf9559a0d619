"""Streams of real vLLM servers continue on another one, or on llama.cpp. Runs after ``test_vllm.py``."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from end_to_end.answer_stream import AnswerStream, Question
from real_vllm.conftest import MODEL, Vllm, running_proxy
from support.http_client import send
from support.llama_server import LlamaServer
from support.waiting import eventually

SECONDS = 300.0
STREAMS = 60
LEAST_MOVED = 20
OTHER_KIND = 8  # streams between vLLM and llama.cpp


def question(number: int, max_tokens: int = 300, *, is_chat: bool | None = None) -> Question:
    """Each one is different. Every second one is a chat, if not stated, and all want the usage."""
    words = " ".join(["kin", "sol", "mer", "tas"][number % 4 :] * (1 + number // 4))
    is_chat = number % 2 == 0 if is_chat is None else is_chat
    return Question.about(words, max_tokens, is_chat=is_chat, wants_usage=True, model=MODEL, ignore_eos=True)


async def command(proxy: str, backend: str, what: str) -> None:
    path = f"/admin/backends/{backend.removeprefix('http://')}/{what}"
    reply = await send(proxy, path, method="POST", headers={"Authorization": "Bearer op"})
    assert reply.status == 200, reply.body


async def begin(group: asyncio.TaskGroup, proxy: str, questions: list[Question]) -> None:
    """Ask the questions, and wait until each answer has begun."""
    for one in questions:
        group.create_task(one.ask(proxy))
    await eventually(lambda: all(len(one.stream.events) > 4 for one in questions), SECONDS)


def many() -> list[Question]:
    return [question(number) for number in range(STREAMS)]


def moved_from(engine: Vllm, questions: list[Question]) -> list[AnswerStream]:
    return [one.stream for one in questions if one.stream.backend == engine.url]


async def check(questions: list[Question], engine: str) -> None:
    """Check that all answers are complete, and that ``engine`` continues them as the client has received them."""
    assert all(one.stream.is_one_answer() for one in questions)
    right = await asyncio.gather(*(one.is_what_an_engine_says(engine) for one in questions))
    assert right.count(False) <= len(questions) // 8  # a batch changes the last bits of numbers, and rarely a token


async def test_streams_move_to_the_other_server_when_theirs_is_drained(proxy: str, engines: list[Vllm]) -> None:
    drained, other = engines
    questions = many()
    async with asyncio.TaskGroup() as group:
        await begin(group, proxy, questions)
        await command(proxy, drained.url, "drain?move=1")
    await command(proxy, drained.url, "undrain")
    moved = moved_from(drained, questions)
    assert len(moved) >= LEAST_MOVED
    assert all(stream.comments == [b": resumed on another backend after request_moved\n\n"] for stream in moved)
    await check(questions, other.url)


@pytest.mark.parametrize("hangs", [Vllm.engine_stopped, Vllm.frozen])
async def test_streams_continue_elsewhere_when_an_engine_hangs(
    engines: list[Vllm], tmp_path: Path, hangs: Callable[[Vllm], AbstractContextManager[None]]
) -> None:
    """If only the engine process hangs, the HTTP server process still answers ``/health``."""
    hanging, other = engines
    questions = many()
    with running_proxy(tmp_path, [hanging.url, other.url], SUSPECT_AFTER_SECONDS="3") as proxy:
        async with asyncio.TaskGroup() as group:
            await begin(group, proxy, questions)
            with hangs(hanging):
                await eventually(lambda: all(one.comments for one in moved_from(hanging, questions)), SECONDS)
        assert len(moved_from(hanging, questions)) >= LEAST_MOVED
        await check(questions, other.url)


@pytest.fixture
def llama(tiny_model: Path) -> Iterator[LlamaServer]:
    """Serves the model of the vLLM servers."""
    with LlamaServer(
        tiny_model, "--alias", MODEL, "--precise", "--slots", "8", "--http-threads", "32", "--context", "16384"
    ) as server:
        yield server


@pytest.mark.parametrize("is_chat", [True, False], ids=["chat", "completions"])
async def test_streams_continue_on_the_other_kind_of_engine(
    engines: list[Vllm], llama: LlamaServer, tmp_path: Path, is_chat: bool
) -> None:
    vllm = engines[1]
    with running_proxy(tmp_path, [vllm.url, llama.url]) as proxy:
        to_llama = [question(number, is_chat=is_chat) for number in range(OTHER_KIND)]
        to_vllm = [question(number, 1500, is_chat=is_chat) for number in range(OTHER_KIND)]
        await command(proxy, llama.url, "drain")
        async with asyncio.TaskGroup() as group:
            await begin(group, proxy, to_llama)
            await command(proxy, llama.url, "undrain")
            await command(proxy, vllm.url, "drain?move=1")
        await check(to_llama, llama.url)

        async with asyncio.TaskGroup() as group:
            await begin(group, proxy, to_vllm)
            await command(proxy, vllm.url, "undrain")
            llama.kill()
        await check(to_vllm, vllm.url)
    for questions, backend in ((to_llama, vllm.url), (to_vllm, llama.url)):
        assert {one.stream.backend for one in questions} == {backend}
        assert {len(one.stream.comments) for one in questions} == {1}


async def test_killed_engine_loses_no_request_and_no_stream(proxy: str, engines: list[Vllm]) -> None:
    """Runs last, because one engine stays dead."""
    killed, other = engines
    whole = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 64, "ignore_eos": True}
    questions = many()
    async with asyncio.TaskGroup() as group:
        await begin(group, proxy, questions)
        replies = [group.create_task(send(proxy, "/v1/chat/completions", whole)) for _ in range(20)]
        await asyncio.to_thread(killed.kill)
    assert Counter(reply.result().status for reply in replies) == {200: 20}
    moved = moved_from(killed, questions)
    assert len(moved) >= LEAST_MOVED
    assert all(one.comments for one in moved)
    await check(questions, other.url)
