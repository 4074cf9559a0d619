"""Streams of Anthropic's messages survive their engine: scripted engines, llama.cpp servers, and Anthropic's SDK."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import anthropic
import pytest

from end_to_end.breaking_engine import (
    MESSAGES,
    WORDS,
    Breaks,
    closes,
    ends_inside_an_event,
    ends_without_a_finish,
    finishes_without_an_end,
    objects,
    reports_an_error,
    reports_an_error_of_the_request,
    text,
    two_engines,
)
from end_to_end.conftest import StartProxy, StartServers
from end_to_end.event_stream import EventStream
from inference_engine_proxy_server.resume.dialects import DIALECTS
from support.counters import counted
from support.http_client import Call
from support.llama_server import LlamaServer
from support.waiting import eventually

TOKENS = 300
QUICK = {"METRICS_CACHE_TTL_SECONDS": "0.5", "SLOW_START_SECONDS": "0"}
ORDER = ["message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop"]


def is_one_message(events: list[dict[str, Any]]) -> bool:
    """Whether the events are those of one uninterrupted message with one text block."""
    kinds = [event["type"] for event in events if event["type"] != "content_block_delta"]
    return kinds == ORDER and {event.get("index", 0) for event in events} == {0}


def usage_of(events: list[dict[str, Any]]) -> dict[str, int]:
    """The usage that a client adds up, with the cached tokens among those of the prompt."""
    [start] = [event["message"]["usage"] for event in events if event["type"] == "message_start"]
    [end] = [event["usage"] for event in events if event["type"] == "message_delta"]
    whole = start | end
    return {"prompt": whole["input_tokens"] + whole["cache_read_input_tokens"], "answer": whole["output_tokens"]}


@pytest.mark.parametrize("breaks", [closes, ends_without_a_finish, ends_inside_an_event, reports_an_error])
async def test_a_message_that_breaks_in_any_way_is_continued(breaks: Breaks) -> None:
    async with two_engines(breaks) as fleet:
        events = await fleet.stream(MESSAGES, max_tokens=9, system="Count.")

        found = objects(events)
        assert text(events) == "".join(WORDS)
        assert is_one_message(found)
        assert usage_of(found) == {"prompt": 8, "answer": 6}
        assert [one for one in events if one.startswith(b":")] == [
            b": resumed on another backend after backend_disconnected\n\n"
        ]
        first, second = fleet.plan.bodies
        assert second == {
            **first,
            "messages": [*first["messages"], {"role": "assistant", "content": "one two three"}],
            "max_tokens": 6,
        }
        assert await fleet.counted("resumes") == {"backend_disconnected": 1}


async def test_the_query_of_claude_code_makes_no_difference() -> None:
    async with two_engines(closes) as fleet:
        body = {"model": "m", "max_tokens": 9, "stream": True, "messages": [{"role": "user", "content": "count"}]}
        async with Call(fleet.proxy.url, f"{MESSAGES}?beta=true", body) as call:
            call.send()
            assert text([(await call.reply()).body]) == "".join(WORDS)


async def test_a_message_that_lacks_only_its_end_is_ended_by_the_proxy() -> None:
    async with two_engines(finishes_without_an_end) as fleet:
        found = objects(await fleet.stream(MESSAGES))
        assert is_one_message(found)
        assert usage_of(found)["answer"] == 3
        assert len(fleet.plan.bodies) == 1


async def test_a_message_that_breaks_at_its_token_limit_is_ended_by_the_proxy() -> None:
    async with two_engines(closes) as fleet:
        found = objects(await fleet.stream(MESSAGES, max_tokens=3))
        assert is_one_message(found)
        assert found[-2]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
        assert usage_of(found)["answer"] == 3
        assert len(fleet.plan.bodies) == 1


async def test_an_error_about_the_request_is_relayed_as_it_is() -> None:
    async with two_engines(reports_an_error_of_the_request) as fleet:
        events = await fleet.stream(MESSAGES)
        assert events[-1].startswith(b"event: error\n")
        assert b'"code": 400' in events[-1]
        assert len(fleet.plan.bodies) == 1


@pytest.mark.parametrize(
    ("block", "rule"),
    [
        ({"type": "thinking", "thinking": ""}, "reasoning"),
        ({"type": "redacted_thinking", "data": "x"}, "reasoning"),
        ({"type": "tool_use", "id": "t", "name": "f", "input": {}}, "tool_calls"),
        ({"type": "server_tool_use", "id": "t", "name": "f", "input": {}}, "unknown_events"),
    ],
)
async def test_what_text_cannot_continue_is_not_resumed(block: dict[str, Any], rule: str) -> None:
    async with two_engines(closes, extra=block) as fleet:
        events = await fleet.stream(MESSAGES)
        assert objects(events)[-1]["type"] == "error"
        assert await fleet.counted("resume_refusals") == {rule: 1}
        assert len(fleet.plan.bodies) == 1


async def test_vllm_does_not_continue_a_message() -> None:
    async with two_engines(closes, owner="vllm") as fleet:
        events = await fleet.stream(MESSAGES)
        assert objects(events)[-1]["type"] == "error"
        assert await fleet.counted("resume_refusals") == {"no_other_backend": 1}


EXCLUDED: dict[str, dict[str, Any]] = {
    "structured_output": {"output_config": {"format": {"type": "json_schema", "schema": {}}}},
    "tool_choice": {"tool_choice": {"type": "any"}},
    "prompt_form": {"messages": {"role": "user", "content": "count"}},
    "assistant_message": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
}


@pytest.mark.parametrize("rule", DIALECTS[MESSAGES].rules)
async def test_a_request_that_breaks_a_rule_gets_the_error_event(rule: str) -> None:
    async with two_engines(closes) as fleet:
        events = await fleet.stream(MESSAGES, **EXCLUDED[rule])
        assert objects(events)[-1]["type"] == "error"
        assert await fleet.counted("resume_refusals") == {rule: 1}
        assert len(fleet.plan.bodies) == 1


class Stream(EventStream):
    """A message that is being read."""

    path = MESSAGES

    @property
    def deltas(self) -> list[str]:
        return [event["delta"]["text"] for event in self.events if event["type"] == "content_block_delta"]


def question(number: int, tokens: int = TOKENS) -> dict[str, Any]:
    words = " ".join(["kin", "sol", "mer", "tas"][number % 4 :] * (1 + number // 4))
    messages = [{"role": "user", "content": [{"type": "text", "text": words}]}]
    return {
        "model": "any", "max_tokens": tokens, "temperature": 0, "stream": True, "system": "tis", "messages": messages,
    }  # fmt: skip


def continued_after(body: dict[str, Any], begun: list[str]) -> dict[str, Any]:
    """The body that asks an engine for the rest of the answer."""
    messages = [*body["messages"], {"role": "assistant", "content": "".join(begun)}]
    return {**body, "messages": messages, "max_tokens": TOKENS - len(begun)}


async def test_messages_of_a_killed_server_continue_on_another_one(
    start_proxy: StartProxy, start_servers: StartServers, slow_model: Path
) -> None:
    servers = start_servers(3, slow_model, "--slots", "4", "--context", "8192", "--precise")
    victim, other = servers[0], servers[1]
    proxy = start_proxy(*servers, **QUICK)
    bodies = [question(number) for number in range(9)]
    streams = [Stream() for _ in bodies]
    async with asyncio.TaskGroup() as group:
        for stream, body in zip(streams, bodies, strict=True):
            group.create_task(stream.read(proxy.url, body))
        await eventually(lambda: all(len(stream.events) > 7 for stream in streams))
        victim.kill()

    assert {stream.backend for stream in streams if stream.seams} == {victim.url}
    for stream, body in zip(streams, bodies, strict=True):
        assert stream.complete
        assert is_one_message(stream.events)
        begun = stream.deltas[: sum(stream.seams)]
        direct = Stream()
        await direct.read(other.url, continued_after(body, begun) if begun else body)
        assert stream.text == "".join(begun) + direct.text
        usage = usage_of(direct.events)
        assert usage_of(stream.events) == {"prompt": usage["prompt"] - len(begun), "answer": TOKENS}
    assert await counted(proxy, "inference_proxy_stream_resumes_total") == {"backend_disconnected": 3}


async def test_the_joined_text_is_the_delivered_text_and_what_a_server_says_next(
    start_servers: StartServers, slow_model: Path
) -> None:
    """The property that a resumed stream relies on, of a real server: no word is repeated, and none is missing."""
    [server] = start_servers(1, slow_model)
    body = question(0, 40)
    whole = Stream()
    await whole.read(server.url, body)
    deltas = [event["delta"]["text"] for event in whole.events if event["type"] == "content_block_delta"]
    for cut in (1, 7, 39):
        beginning = "".join(deltas[:cut])
        rest = Stream()
        messages = [*body["messages"], {"role": "assistant", "content": beginning}]
        await rest.read(server.url, {**body, "messages": messages, "max_tokens": 40 - cut})
        assert beginning + rest.text == whole.text


async def test_a_server_that_does_not_continue_messages_gets_none(
    start_proxy: StartProxy, start_servers: StartServers, slow_model: Path
) -> None:
    servers = start_servers(2, slow_model, "--slots", "2", "--context", "8192", "--no-prefill")
    proxy = start_proxy(*servers, **QUICK)
    stream = Stream()
    async with asyncio.TaskGroup() as group:
        group.create_task(stream.read(proxy.url, question(0)))
        await eventually(lambda: len(stream.events) > 7)
        next(server for server in servers if server.url == stream.backend).kill()
    assert stream.events[-1]["type"] == "error"
    assert await counted(proxy, "inference_proxy_stream_resume_refusals_total") == {"no_other_backend": 1}


QUESTION: Any = {
    "model": "any",
    "max_tokens": TOKENS,
    "messages": [{"role": "user", "content": "kin"}],
    "extra_body": {"temperature": 0},
}


async def test_the_anthropic_sdk_does_not_notice_that_its_server_died(
    start_proxy: StartProxy, two_slow_servers: list[LlamaServer]
) -> None:
    proxy = start_proxy(*two_slow_servers, **QUICK)
    async with anthropic.AsyncAnthropic(base_url=proxy.url, api_key="none", max_retries=0) as client:
        async with client.messages.stream(**QUESTION) as stream:
            pieces = []
            async for piece in stream.text_stream:
                pieces.append(piece)
                if len(pieces) == 20:
                    serving = stream.response.headers["x-backend"]
                    next(server for server in two_slow_servers if server.url == serving).kill()
            message = await stream.get_final_message()
    assert await counted(proxy, "inference_proxy_stream_resumes_total") == {"backend_disconnected": 1}
    [block] = message.content
    assert block.type == "text"
    assert block.text == "".join(pieces)
    assert message.stop_reason == "max_tokens"
    assert message.usage.output_tokens == TOKENS
