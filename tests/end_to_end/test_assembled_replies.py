"""A reply that is assembled from a real llama.cpp server's stream equals the server's own, byte for byte."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from end_to_end.conftest import StartProxy
from inference_engine_proxy_server.demo.model import demo_model
from support.counters import counted
from support.http_client import Reply, send
from support.llama_server import LlamaServer
from support.program import Proxy

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
COUNTER = "inference_proxy_assembled_replies_total"
THINKING = Path(__file__).parent / "thinking.jinja"
# Ids, times and speeds differ between any two replies; their presence, order and type must not.
VARIED = [(rb'"(created|id)":(?:\d+|"[^"]+")', rb'"\1":0'), (rb'_(ms|second)":[0-9.e+-]+', rb'_\1":0')]

CITY = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "About a city.", "parameters": CITY}}
    for name in ("weather", "population")
]


OPTIONS = ("--slots", "1", "--context", "2048", "--chat-template", str(THINKING))


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[LlamaServer]:
    """Says what a grammar makes it say."""
    with LlamaServer(tiny_model, *OPTIONS) as running:
        yield running


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, server: LlamaServer) -> Iterator[Proxy]:
    with Proxy(tmp_path_factory.mktemp("proxy"), [server.url]) as running:
        yield running


@pytest.fixture
def clever_server() -> Iterator[LlamaServer]:
    """Calls tools if earlier turns show it how."""
    with LlamaServer(demo_model(lambda _: None), *OPTIONS) as running:
        yield running


def asked(content: str, *earlier: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [*earlier, {"role": "user", "content": content}]}


def forced(text: str, max_tokens: int = 60) -> dict[str, Any]:
    """A request whose answer is this text."""
    return {**asked("Hello"), "grammar": f"root ::= {json.dumps(text, ensure_ascii=False)}", "max_tokens": max_tokens}


def calls(*cities: str) -> list[dict[str, Any]]:
    """A turn in which the assistant calls a tool for each city."""
    made = [
        {"id": f"call{at}", "type": "function", "function": {"name": "weather", "arguments": json.dumps({"city": one})}}
        for at, one in enumerate(cities)
    ]
    answers = [{"role": "tool", "tool_call_id": one["id"], "content": "sunny"} for one in made]
    question = asked(f"Weather in {' and '.join(cities)}?")["messages"]
    return [*question, {"role": "assistant", "content": "", "tool_calls": made}, *answers]


def with_tools(**members: Any) -> dict[str, Any]:
    """A question about two cities, after turns that answer such questions with two calls."""
    examples = [
        message for names in (("London", "Oslo"), ("Rome", "Bonn"), ("Berlin", "Lima")) for message in calls(*names)
    ]
    return {**asked("Weather in Paris and Kyoto?", *examples), "tools": TOOLS, "max_tokens": 70, **members}


def fixed(reply: Reply) -> bytes:
    body = reply.body
    for pattern, replacement in VARIED:
        body = re.sub(pattern, replacement, body)
    return body


def fields(reply: Reply) -> dict[str, str]:
    added = ("x-request-id", "x-backend", "connection", "keep-alive", "content-length")
    return {name: value for name, value in reply.headers.items() if name not in added}


async def both(server: LlamaServer, proxy: Proxy, path: str, body: dict[str, Any]) -> tuple[Reply, Reply]:
    """The replies of the server itself, and of the proxy."""
    full = {"temperature": 0, "seed": 1, "cache_prompt": False, **body}
    return await send(server.url, path, full), await send(proxy.url, path, full)


ASSEMBLED = {
    "a chat answer at its limit": (CHAT, {**asked("Tell me a story"), "max_tokens": 30}),
    "a text at its limit": (TEXT, {"prompt": "Once upon a time", "max_tokens": 30}),
    "the path without a version": ("/chat/completions", {**asked("Tell me a story"), "max_tokens": 5}),
    "the end of a text": (TEXT, {"prompt": "x", "grammar": 'root ::= "yes"'}),
    "the end of a chat answer": (CHAT, forced("yes")),
    "a text before a stop string": (
        TEXT,
        {"prompt": "x", "grammar": 'root ::= "one two three"', "stop": ["two", "never said"]},
    ),
    "a chat answer before a stop string": (CHAT, {**forced("one two three"), "stop": "tw"}),
    "a stop string at once": (TEXT, {"prompt": "x", "grammar": 'root ::= "yes"', "stop": ["yes"]}),
    "an empty chat answer": (CHAT, forced("")),
    "an empty text": (TEXT, {"prompt": "x", "grammar": 'root ::= ""'}),
    "a limit of no tokens": (CHAT, {**asked("Hello"), "max_tokens": 0}),
    "blanks": (CHAT, forced("\n\n  a  \n\n")),
    "characters of several tokens, and escapes": (CHAT, forced('é👩‍👧𠀋"\\\n\t\x01\x7f/')),
    "the same as a text": (TEXT, {"prompt": "x", "grammar": 'root ::= "é👩‍👧𠀋\\"\\\\\\n\\t/"'}),
    "an object by a schema": (
        CHAT,
        {
            **asked("Invent a person."),
            "response_format": {"type": "json_schema", "json_schema": {"name": "person", "schema": CITY}},
            "max_tokens": 40,
        },
    ),
    "reasoning and an answer": (CHAT, forced("<think>\nI think \n\n</think>\n\n Hello ")),
    "only reasoning": (CHAT, forced("<think>\nI think\n</think>\n")),
    "reasoning at its limit": (CHAT, forced("<think>\nI think a lot\n</think>\n\nHello", 9)),
    "reasoning that stays in the text": (CHAT, {**forced("<think>\nI think</think>a"), "reasoning_format": "none"}),
    "what looks like a mark": (CHAT, forced("a<b</thin > <tool")),
    "members that llama.cpp ignores": (CHAT, {**asked("Hi"), "max_tokens": 3, "user": "me", "n": 1, "stream": None}),
}


@pytest.mark.parametrize(("path", "body"), ASSEMBLED.values(), ids=ASSEMBLED)
async def test_an_assembled_reply_equals_the_servers_own(
    server: LlamaServer, proxy: Proxy, path: str, body: dict[str, Any]
) -> None:
    before = await counted(proxy, COUNTER)
    own, assembled = await both(server, proxy, path, body)
    assert own.status == assembled.status == 200
    assert fixed(own) == fixed(assembled)
    assert fields(own) == fields(assembled)
    assert int(assembled.headers["content-length"]) == len(assembled.body)
    assert assembled.headers["x-backend"] == server.url
    after = await counted(proxy, COUNTER)
    assert after == {**before, "assembled": before.get("assembled", 0) + 1}


@pytest.mark.parametrize(
    ("members", "cities", "finish_reason"),
    [
        ({"tool_choice": "required", "stop": ["</tool_call>"]}, ["Paris"], "tool_calls"),
        ({"tool_choice": "auto", "parallel_tool_calls": True, "max_tokens": 50}, ["Paris", "Kyoto"], "length"),
    ],
    ids=["one", "several"],
)
async def test_assembled_tool_calls_equal_the_servers_own(
    clever_server: LlamaServer,
    start_proxy: StartProxy,
    members: dict[str, Any],
    cities: list[str],
    finish_reason: str,
) -> None:
    proxy = start_proxy(clever_server)
    own, assembled = await both(clever_server, proxy, CHAT, with_tools(**members))
    assert fixed(own) == fixed(assembled)
    [choice] = assembled.json["choices"]
    functions = [call["function"] for call in choice["message"]["tool_calls"]]
    assert [(one["name"], json.loads(one["arguments"])) for one in functions] == [
        ("weather", {"city": city}) for city in cities
    ]
    assert choice["finish_reason"] == finish_reason
    assert await counted(proxy, COUNTER) == {"assembled": 1}


async def test_cached_tokens_are_reported_as_the_server_reports_them(server: LlamaServer, proxy: Proxy) -> None:
    body = {**asked("Tell me a long story about a fox"), "max_tokens": 8, "cache_prompt": True}
    await send(server.url, CHAT, body)
    own, assembled = await both(server, proxy, CHAT, body)
    assert own.json["usage"]["prompt_tokens_details"]["cached_tokens"] > 10
    assert own.json["usage"] == assembled.json["usage"]
    assert own.json["timings"].keys() == assembled.json["timings"].keys()


SENT_AGAIN = {
    "part of a stop string at the limit": (
        "cut_end",
        TEXT,
        {"prompt": "x", "grammar": 'root ::= "one two"', "max_tokens": 2, "stop": ["nor"]},
    ),
    "part of a character at the limit": (
        "cut_end",
        TEXT,
        {"prompt": "x", "grammar": 'root ::= "a𠀋"', "max_tokens": 3},
    ),
    "no reasoning and no answer": ("empty_message", CHAT, forced("<think>\n\n</think>\n\n")),
    "part of a mark at the limit": ("empty_message", CHAT, forced("<think>\nI think", 3)),
}


@pytest.mark.parametrize(("doubt", "path", "body"), SENT_AGAIN.values(), ids=SENT_AGAIN)
async def test_a_reply_that_a_stream_does_not_show_comes_from_the_server_itself(
    server: LlamaServer, proxy: Proxy, doubt: str, path: str, body: dict[str, Any]
) -> None:
    before = await counted(proxy, COUNTER)
    own, relayed = await both(server, proxy, path, body)
    assert own.status == relayed.status == 200
    assert fixed(own) == fixed(relayed)
    assert await counted(proxy, COUNTER) == {**before, doubt: before.get(doubt, 0) + 1}


UNCHANGED = {
    "an assistant message to continue": (CHAT, asked("Hi")["messages"] + [{"role": "assistant", "content": "Once"}]),
    "several answers": (TEXT, {"prompt": ["a", "b"]}),
    "probabilities": (TEXT, {"prompt": "a", "logprobs": 2}),
    "chat probabilities": (CHAT, {**asked("Hi"), "logprobs": True, "top_logprobs": 2}),
    "debug output": (TEXT, {"prompt": "a", "verbose": True}),
    "a member that the proxy does not know": (TEXT, {"prompt": "a", "t_max_predict_ms": 60000}),
    "the engine's own path": ("/completions", {"prompt": "a"}),
}


@pytest.mark.parametrize(("path", "body"), UNCHANGED.values(), ids=UNCHANGED)
async def test_a_request_that_the_rules_exclude_is_forwarded_unchanged(
    server: LlamaServer, proxy: Proxy, path: str, body: Any
) -> None:
    members = {"messages": body} if isinstance(body, list) else body
    before = await counted(proxy, COUNTER)
    own, relayed = await both(server, proxy, path, {**members, "max_tokens": 3})
    assert own.status == relayed.status == 200
    assert own.json.keys() == relayed.json.keys()
    assert own.json.get("choices") == relayed.json.get("choices")
    assert await counted(proxy, COUNTER) == before


@pytest.mark.parametrize(
    "body",
    [{"messages": "x"}, asked("x " * 3000), {**asked("x"), "grammar": "root ::= ("}, {**asked("x"), "seed": "one"}],
    ids=["no messages", "too long", "no grammar", "no seed"],
)
async def test_an_error_is_the_servers_own(server: LlamaServer, proxy: Proxy, body: dict[str, Any]) -> None:
    own, relayed = await both(server, proxy, CHAT, body)
    assert own.status == relayed.status == 400
    assert own.body == relayed.body
    assert fields(own) == fields(relayed)
