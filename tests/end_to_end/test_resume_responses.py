"""Streams of OpenAI's responses survive their engine: scripted engines, llama.cpp servers, and OpenAI's SDK."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import openai
import pytest

from end_to_end.breaking_engine import (
    RESPONSES,
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
from support.llama_server import LlamaServer
from support.waiting import eventually

TOKENS = 300
QUICK = {"METRICS_CACHE_TTL_SECONDS": "0.5", "SLOW_START_SECONDS": "0"}
ORDER = [
    "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed",
]  # fmt: skip


def is_one_response(events: list[dict[str, Any]]) -> bool:
    """Whether the events are those of one uninterrupted response with one message."""
    kinds = [event["type"] for event in events if event["type"] != "response.output_text.delta"]
    responses = {event["response"]["id"] for event in events if "response" in event}
    items = {event["item_id"] for event in events if "item_id" in event}
    items |= {event["item"]["id"] for event in events if "item" in event}
    items |= {item["id"] for item in events[-1]["response"]["output"]}
    return kinds == ORDER and (len(responses), len(items)) == (1, 1)


def texts_of(events: list[dict[str, Any]]) -> set[str]:
    """The text according to each event that has the whole text, and to all deltas together."""
    by_type = {event["type"]: event for event in events}
    return {
        "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta"),
        by_type["response.output_text.done"]["text"],
        by_type["response.content_part.done"]["part"]["text"],
        by_type["response.output_item.done"]["item"]["content"][0]["text"],
        by_type["response.completed"]["response"]["output"][0]["content"][0]["text"],
    }


@pytest.mark.parametrize("breaks", [closes, ends_without_a_finish, ends_inside_an_event, reports_an_error])
async def test_a_response_that_breaks_in_any_way_is_continued(breaks: Breaks) -> None:
    async with two_engines(breaks) as fleet:
        events = await fleet.stream(RESPONSES, max_output_tokens=9, instructions="Count.")

        found = objects(events)
        assert texts_of(found) == {"".join(WORDS)}
        assert is_one_response(found)
        assert [event["sequence_number"] for event in found] == list(range(len(found)))
        response = found[-1]["response"]
        assert (response["created_at"], response["max_output_tokens"]) == (found[0]["response"]["created_at"], 9)
        usage = {
            "input_tokens": 8,
            "output_tokens": 6,
            "total_tokens": 14,
            "input_tokens_details": {"cached_tokens": 0},
        }
        assert response["usage"] == usage
        first, second = fleet.plan.bodies
        [asked, begun] = second["input"]
        assert asked == {"role": "user", "content": "count"}
        assert begun == {
            "id": found[2]["item"]["id"], "type": "message", "role": "assistant", "status": "in_progress",
            "content": [{"type": "output_text", "text": "one two three", "annotations": []}],
        }  # fmt: skip
        assert second == {
            **first, "input": second["input"], "max_output_tokens": 6, "continue_final_message": True,
            "add_generation_prompt": False,
        }  # fmt: skip
        assert await fleet.counted("resumes") == {"backend_disconnected": 1}


@pytest.mark.parametrize(("breaks", "fields"), [(finishes_without_an_end, {}), (closes, {"max_output_tokens": 3})])
async def test_a_response_that_lacks_only_its_end_gets_the_error_event(breaks: Breaks, fields: dict[str, Any]) -> None:
    """Its last event has the usage, which the proxy does not know."""
    async with two_engines(breaks) as fleet:
        events = await fleet.stream(RESPONSES, **fields)
        assert objects(events)[-1]["type"] == "response.failed"
        assert text(events) == "one two three"
        assert await fleet.counted("resume_refusals") == {"no_usage": 1}


async def test_an_error_about_the_request_is_relayed_as_it_is() -> None:
    async with two_engines(reports_an_error_of_the_request) as fleet:
        assert b'"code": 400' in (await fleet.stream(RESPONSES))[-1]
        assert len(fleet.plan.bodies) == 1


@pytest.mark.parametrize(
    ("item", "rule"),
    [
        ({"type": "reasoning", "id": "r", "summary": []}, "reasoning"),
        ({"type": "function_call", "id": "f", "name": "f", "arguments": ""}, "tool_calls"),
        ({"type": "web_search_call", "id": "w"}, "tool_calls"),
        ({"type": "image", "id": "i"}, "unknown_events"),
    ],
)
async def test_what_text_cannot_continue_is_not_resumed(item: dict[str, Any], rule: str) -> None:
    async with two_engines(closes, extra=item) as fleet:
        assert objects(await fleet.stream(RESPONSES))[-1]["type"] == "response.failed"
        assert await fleet.counted("resume_refusals") == {rule: 1}
        assert len(fleet.plan.bodies) == 1


async def test_vllm_does_not_continue_a_response() -> None:
    async with two_engines(closes, owner="vllm") as fleet:
        assert objects(await fleet.stream(RESPONSES))[-1]["type"] == "response.failed"
        assert await fleet.counted("resume_refusals") == {"no_other_backend": 1}


EXCLUDED: dict[str, dict[str, Any]] = {
    "logprobs": {"include": ["message.output_text.logprobs"]},
    "structured_output": {"text": {"format": {"type": "json_object"}}},
    "tool_choice": {"tool_choice": "required"},
    "penalties": {"presence_penalty": 0.5},
    "prompt_form": {"input": {"role": "user"}},
    "assistant_message": {"input": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    "stored_state": {"previous_response_id": "resp_1"},
    "hidden_reasoning": {"include_reasoning": False},
}


@pytest.mark.parametrize("rule", DIALECTS[RESPONSES].rules)
async def test_a_request_that_breaks_a_rule_gets_the_error_event(rule: str) -> None:
    async with two_engines(closes) as fleet:
        assert objects(await fleet.stream(RESPONSES, **EXCLUDED[rule]))[-1]["type"] == "response.failed"
        assert await fleet.counted("resume_refusals") == {rule: 1}
        assert len(fleet.plan.bodies) == 1


class Stream(EventStream):
    """A response that is being read."""

    path = RESPONSES

    @property
    def deltas(self) -> list[str]:
        return [event["delta"] for event in self.events if event["type"] == "response.output_text.delta"]

    @property
    def tokens(self) -> tuple[int, int, int]:
        usage = self.events[-1]["response"]["usage"]
        return usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]


def question(number: int, tokens: int = TOKENS) -> dict[str, Any]:
    words = " ".join(["kin", "sol", "mer", "tas"][number % 4 :] * (1 + number // 4))
    return {
        "model": "any", "max_output_tokens": tokens, "temperature": 0, "stream": True, "instructions": "tis",
        "input": words,
    }  # fmt: skip


def continued_after(body: dict[str, Any], begun: list[str]) -> dict[str, Any]:
    """The body that asks an engine for the rest of the answer."""
    content = [{"type": "output_text", "text": "".join(begun), "annotations": []}]
    item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "in_progress", "content": content}
    return {
        **body, "input": [{"role": "user", "content": body["input"]}, item], "max_output_tokens": TOKENS - len(begun),
        "continue_final_message": True, "add_generation_prompt": False,
    }  # fmt: skip


@pytest.mark.parametrize("options", [(), ("--no-prefill",)])
async def test_responses_of_a_killed_server_continue_on_another_one(
    start_proxy: StartProxy, start_servers: StartServers, slow_model: Path, options: tuple[str, ...]
) -> None:
    servers = start_servers(2, slow_model, "--slots", "4", "--context", "8192", "--precise", *options)
    victim, other = servers
    proxy = start_proxy(*servers, **QUICK)
    bodies = [question(number) for number in range(4)]
    streams = [Stream() for _ in bodies]
    async with asyncio.TaskGroup() as group:
        for stream, body in zip(streams, bodies, strict=True):
            group.create_task(stream.read(proxy.url, body))
        await eventually(lambda: all(len(stream.events) > 10 for stream in streams))
        victim.kill()

    assert {stream.backend for stream in streams if stream.seams} == {victim.url}
    for stream, body in zip(streams, bodies, strict=True):
        assert stream.complete
        assert is_one_response(stream.events)
        begun = stream.deltas[: sum(stream.seams)]
        direct = Stream()
        await direct.read(other.url, continued_after(body, begun) if begun else body)
        assert stream.deltas == begun + direct.deltas
        read, _, total = direct.tokens
        assert stream.tokens == (read - len(begun), TOKENS, total)
    assert await counted(proxy, "inference_proxy_stream_resumes_total") == {"backend_disconnected": 2}


async def test_the_openai_sdk_does_not_notice_that_its_server_died(
    start_proxy: StartProxy, two_slow_servers: list[LlamaServer]
) -> None:
    proxy = start_proxy(*two_slow_servers, **QUICK)
    async with openai.AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key="none", max_retries=0) as client:
        # The first event takes the SDK so long that a stream would be over.
        async for _ in await client.responses.create(model="any", input="kin", max_output_tokens=1, stream=True):
            pass
        asked = await client.responses.create(model="any", input="kin", max_output_tokens=TOKENS, stream=True)
        pieces, last = [], None
        async for event in asked:
            if event.type == "response.output_text.delta":
                pieces.append(event.delta)
            if len(pieces) == 20:
                serving = asked.response.headers["x-backend"]
                next(server for server in two_slow_servers if server.url == serving).kill()
            last = event
    assert await counted(proxy, "inference_proxy_stream_resumes_total") == {"backend_disconnected": 1}
    assert last is not None
    assert last.type == "response.completed"
    assert last.response.output_text == "".join(pieces)
    assert last.response.usage is not None
    assert last.response.usage.output_tokens == TOKENS


async def test_the_openai_sdk_adds_up_a_response_whose_server_died() -> None:
    """The SDK's helper needs the indexes of items and parts, which llama.cpp does not send."""
    async with two_engines(closes) as fleet:
        async with openai.AsyncOpenAI(base_url=f"{fleet.proxy.url}/v1", api_key="none", max_retries=0) as client:
            async with client.responses.stream(model="m", input="count") as stream:
                response = await stream.get_final_response()
        assert response.output_text == "".join(WORDS)
        assert len(fleet.plan.bodies) == 2
