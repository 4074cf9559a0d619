"""What is resumed, what is not, and how each looks to the client. Scripted engines fail as real ones do."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from inference_engine_proxy_server.resume.rules import REQUEST_RULES
from support.fakes.engine import EngineConnection, FakeEngine, http_reply
from support.http_client import Call
from support.live_proxy import Proxy, live_proxy

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
WORDS = ["one", " two", " three", " four", " five", " six"]
LAST = b"0\r\n\r\n"
Breaks = Callable[["Engine", EngineConnection], None]


@dataclass
class Plan:
    """What the next requests meet, on whatever engine.

    Attributes:
        steps: how each of the next streams breaks after three words; later ones do not break.
        delta: further members of each delta.
        bodies: of the requests so far.
    """

    steps: list[Breaks]
    delta: dict[str, Any] = field(default_factory=dict)
    bodies: list[dict[str, Any]] = field(default_factory=list)


class Engine(FakeEngine):
    """A vLLM server that says WORDS, or what is left of them."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(self._serve)
        self._plan = plan

    async def _serve(self, connection: EngineConnection) -> None:
        while True:
            request = await connection.request()
            target = request.split(b" ", 2)[1]
            if target == b"/v1/models":
                models = {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "vllm"}]}
                connection.send(http_reply(json.dumps(models).encode()))
            elif request.startswith(b"GET"):
                connection.send(http_reply(b"", 200 if target == b"/health" else 404))
            else:
                self._answer(connection, request)

    def _answer(self, connection: EngineConnection, request: bytes) -> None:
        body = json.loads(request.partition(b"\r\n\r\n")[2])
        self._plan.bodies.append(body)
        breaks = self._plan.steps.pop(0) if self._plan.steps else None
        if breaks is rejects:
            connection.send(http_reply(b'{"error":{}}', 400))
            return
        is_chat = b"/chat/" in request
        said = body["messages"][-1]["content"] if is_chat else "".join(body["prompt"])
        words = [word for at, word in enumerate(WORDS) if not said.startswith("".join(WORDS[: at + 1]))]
        connection.send(HEAD)
        if is_chat:
            connection.send(
                chunk({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}, self.port)
            )
        for word in words[: 1 if breaks is closes_after_one_word else 3 if breaks else None]:
            choice = {"delta": {"content": word, **self._plan.delta}} if is_chat else {"text": word}
            connection.send(chunk({"choices": [{"index": 0, "finish_reason": None, **choice}]}, self.port))
        if breaks is not None:
            breaks(self, connection)
            return
        last: dict[str, Any] = {"delta": {}} if is_chat else {"text": ""}
        connection.send(chunk({"choices": [{"index": 0, "finish_reason": "stop", **last}]}, self.port))
        connection.send(framed(b"data: [DONE]\n\n"), LAST)


def framed(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def chunk(members: dict[str, Any], port: int) -> bytes:
    kind = "chat.completion.chunk" if "delta" in members["choices"][0] else "text_completion"
    event = {"id": f"cmpl-{port}", "object": kind, "created": 1, "model": "m", **members}
    return framed(b"data: " + json.dumps(event).encode() + b"\n\n")


def closes(engine: Engine, connection: EngineConnection) -> None:
    del engine
    connection.finish()


def stalls(engine: Engine, connection: EngineConnection) -> None:
    """Sends nothing more, and leaves the connection open."""


def closes_after_one_word(engine: Engine, connection: EngineConnection) -> None:
    closes(engine, connection)


def reports_an_error_of_the_request(engine: Engine, connection: EngineConnection) -> None:
    del engine
    error = b'data: {"error": {"message": "too long", "code": 400}}\n\n'
    connection.send(framed(error), framed(b"data: [DONE]\n\n"), LAST)


def ends_without_a_finish(engine: Engine, connection: EngineConnection) -> None:
    del engine
    connection.send(LAST)


def ends_inside_an_event(engine: Engine, connection: EngineConnection) -> None:
    connection.send(chunk({"choices": [{"index": 0, "delta": {"content": "lost"}}]}, engine.port)[:60])
    connection.finish()


def reports_an_error(engine: Engine, connection: EngineConnection) -> None:
    del engine
    connection.send(
        framed(b'data: {"error": {"message": "EngineDeadError", "code": 500}}\n\n'), framed(b"data: [DONE]\n\n")
    )
    connection.send(LAST)


def aborts(engine: Engine, connection: EngineConnection) -> None:
    event = {"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "abort"}]}
    connection.send(chunk(event, engine.port), framed(b"data: [DONE]\n\n"), LAST)


def finishes_without_an_end(engine: Engine, connection: EngineConnection) -> None:
    connection.send(chunk({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}, engine.port))
    connection.finish()


def rejects(engine: Engine, connection: EngineConnection) -> None:
    """Answers 400, as an engine does that cannot continue a message."""


BREAKS = [closes, ends_without_a_finish, ends_inside_an_event, reports_an_error, aborts]


@asynccontextmanager
async def two_engines(*steps: Breaks, delta: dict[str, Any] | None = None, **settings: Any) -> AsyncIterator[Fleet]:
    plan = Plan(list(steps), delta or {})
    async with Engine(plan) as one, Engine(plan) as other, live_proxy(one.url, other.url, **settings) as proxy:
        yield Fleet(proxy, plan)


@dataclass
class Fleet:
    """A proxy in front of two engines that follow one plan."""

    proxy: Proxy
    plan: Plan

    async def stream(self, path: str = CHAT, headers: dict[str, str] | None = None, **fields: Any) -> list[bytes]:
        """The events of one stream."""
        async with Call(self.proxy.url, path, body_for(path, **fields), headers=headers) as call:
            call.send()
            assert await call.head() == 200
            events = []
            while event := await call.event():
                events.append(event)
            return events

    async def counted(self, name: str) -> dict[str, float]:
        page = (await self.proxy.http.get("/metrics")).text
        lines = [line for line in page.splitlines() if line.startswith(f"inference_proxy_stream_{name}_total{{")]
        counts = {line.split('"')[1]: float(line.split()[-1]) for line in lines}
        return {label: count for label, count in counts.items() if count}


def body_for(path: str, **fields: Any) -> dict[str, Any]:
    asked = {"messages": [{"role": "user", "content": "count"}]} if path == CHAT else {"prompt": ""}
    return {"model": "m", "stream": True, **asked, **fields}


def text(events: list[bytes]) -> str:
    choices = [choice for one in objects(events) for choice in one.get("choices", ())]
    return "".join(one.get("text") or one.get("delta", {}).get("content") or "" for one in choices)


def objects(events: list[bytes]) -> list[dict[str, Any]]:
    return [json.loads(one[6:]) for one in events if one.startswith(b"data: {")]


def is_broken(events: list[bytes]) -> bool:
    """Whether the client got whole events, the error event last, and no end."""
    return "error" in objects(events)[-1] and b"data: [DONE]\n\n" not in events


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("breaks", BREAKS)
async def test_a_stream_that_breaks_in_any_way_is_continued(breaks: Breaks, path: str) -> None:
    async with two_engines(breaks) as fleet:
        events = await fleet.stream(path, max_tokens=9, min_tokens=4)

        found = objects(events)
        assert text(events) == "".join(WORDS)
        assert len({one["id"] for one in found}) == 1
        assert [c["finish_reason"] for one in found for c in one["choices"] if c.get("finish_reason")] == ["stop"]
        assert sum("role" in c.get("delta", {}) for one in found for c in one["choices"]) == (path == CHAT)
        assert events.count(b"data: [DONE]\n\n") == 1
        assert [one for one in events if one.startswith(b":")] == [
            b": resumed on another backend after backend_disconnected\n\n"
        ]
        second = fleet.plan.bodies[1]
        assert (second["max_tokens"], second["min_tokens"]) == (6, 1)
        assert await fleet.counted("resumes") == {"backend_disconnected": 1}
        assert not await fleet.counted("resume_refusals")


async def test_a_stream_that_stalls_is_continued() -> None:
    async with two_engines(stalls, backend_stream_idle_timeout_seconds=0.4) as fleet:
        events = await fleet.stream()
        assert text(events) == "".join(WORDS)
        assert await fleet.counted("resumes") == {"backend_timeout": 1}


async def test_the_continuation_asks_the_engine_to_continue_the_message() -> None:
    async with two_engines(closes) as fleet:
        await fleet.stream()
        first, second = fleet.plan.bodies
        assert second == {
            **first,
            "messages": [*first["messages"], {"role": "assistant", "content": "one two three"}],
            "continue_final_message": True,
            "add_generation_prompt": False,
        }


async def test_the_access_log_counts_resumes(capsys: pytest.CaptureFixture[str]) -> None:
    async with two_engines(closes) as fleet:
        await fleet.stream()
        await fleet.proxy.stop()
        assert " 200 complete " in (line := capsys.readouterr().out.splitlines()[-1])
        assert line.endswith(" resumes=1")


async def test_the_decision_of_a_continuation_says_what_broke_the_stream() -> None:
    async with two_engines(closes, admin_key="op") as fleet:
        await fleet.stream()
        reply = await fleet.proxy.http.get("/admin/decisions", headers={"Authorization": "Bearer op"})
        second, first = reply.json()["decisions"]
        assert (first["resumes"], first["failures"]) == (0, {})
        assert (second["resumes"], second["failures"]) == (1, {first["chosen"]: "backend_disconnected"})


async def test_a_stream_that_lacks_only_its_end_is_ended_by_the_proxy() -> None:
    async with two_engines(finishes_without_an_end) as fleet:
        events = await fleet.stream()
        assert text(events) == "one two three"
        assert events[-1] == b"data: [DONE]\n\n"
        assert len(fleet.plan.bodies) == 1


async def test_a_stream_that_breaks_at_its_token_limit_is_ended_by_the_proxy() -> None:
    async with two_engines(closes) as fleet:
        events = await fleet.stream(max_tokens=3)
        assert objects(events)[-1]["choices"] == [{"index": 0, "finish_reason": "length", "delta": {}}]
        assert events[-1] == b"data: [DONE]\n\n"
        assert len(fleet.plan.bodies) == 1


async def test_a_stream_is_resumed_twice_and_not_a_third_time() -> None:
    plan = Plan([closes, closes_after_one_word, closes_after_one_word])
    async with AsyncExitStack() as stack:
        engines = [await stack.enter_async_context(Engine(plan)) for _ in range(4)]
        proxy = await stack.enter_async_context(live_proxy(*(engine.url for engine in engines)))
        fleet = Fleet(proxy, plan)
        events = await fleet.stream()

        assert text(events) == "one two three four five"
        assert is_broken(events)
        assert await fleet.counted("resumes") == {"backend_disconnected": 2}
        assert await fleet.counted("resume_refusals") == {"resumes": 1}


async def test_an_engine_that_rejects_the_continuation_is_not_blamed() -> None:
    async with two_engines(closes, rejects) as fleet:
        events = await fleet.stream()
        assert is_broken(events)
        assert text(events) == "one two three"
        assert await fleet.counted("resume_refusals") == {"not_continued": 1}
        states = {one["backend"]: one["state"] for one in (await fleet.proxy.health())["details"]}
        assert "up" in states.values()


async def test_without_another_backend_the_client_gets_the_error_event() -> None:
    plan = Plan([closes])
    async with Engine(plan) as engine, live_proxy(engine.url) as proxy:
        fleet = Fleet(proxy, plan)
        assert is_broken(await fleet.stream())
        assert await fleet.counted("resume_refusals") == {"no_other_backend": 1}


async def test_a_lost_usage_is_not_invented() -> None:
    async with two_engines(finishes_without_an_end) as fleet:
        assert is_broken(await fleet.stream(stream_options={"include_usage": True}))
        assert await fleet.counted("resume_refusals") == {"no_usage": 1}


@pytest.mark.parametrize(
    ("delta", "rule"),
    [
        ({"reasoning_content": "hm"}, "reasoning"),
        ({"reasoning": "hm"}, "reasoning"),
        ({"tool_calls": [{"index": 0}]}, "tool_calls"),
        ({"audio": {"data": "x"}}, "unknown_events"),
    ],
)
async def test_what_text_cannot_continue_is_not_resumed(delta: dict[str, Any], rule: str) -> None:
    async with two_engines(closes, delta=delta) as fleet:
        assert is_broken(await fleet.stream())
        assert await fleet.counted("resume_refusals") == {rule: 1}
        assert len(fleet.plan.bodies) == 1


async def test_an_error_about_the_request_is_relayed_as_it_is() -> None:
    async with two_engines(reports_an_error_of_the_request) as fleet:
        events = await fleet.stream()
        assert b'"code": 400' in events[-2]
        assert events[-1] == b"data: [DONE]\n\n"
        assert len(fleet.plan.bodies) == 1


@pytest.mark.parametrize(
    ("mode", "header", "is_resumed"),
    [
        ("on", None, True),
        ("on", "off", False),
        ("header", None, False),
        ("header", "on", True),
        ("off", "on", False),
    ],
)
async def test_stream_resume_and_the_header_decide(mode: str, header: str | None, is_resumed: bool) -> None:
    async with two_engines(closes, stream_resume=mode) as fleet:
        events = await fleet.stream(headers={} if header is None else {"X-Stream-Resume": header})
        assert is_broken(events) is not is_resumed


async def test_comments_about_resumes_can_be_switched_off() -> None:
    async with two_engines(closes, stream_resume_comments=False) as fleet:
        assert not [event for event in await fleet.stream() if event.startswith(b":")]


EXCLUDED: dict[str, dict[str, Any]] = {
    "several_answers": {"n": 2},
    "logprobs": {"logprobs": True},
    "structured_output": {"response_format": {"type": "json_object"}},
    "tool_choice": {"tool_choice": "required"},
    "echo": {"echo": True},
    "penalties": {"frequency_penalty": 0.5},
    "prompt_form": {"prompt": ["six", "seven"]},
    "assistant_message": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
}


@pytest.mark.parametrize("rule", [rule.name for rule in REQUEST_RULES])
async def test_a_request_that_breaks_a_rule_gets_the_error_event(rule: str) -> None:
    fields = EXCLUDED[rule]
    async with two_engines(closes) as fleet:
        assert is_broken(await fleet.stream(COMPLETIONS if "prompt" in fields else CHAT, **fields))
        assert await fleet.counted("resume_refusals") == {rule: 1}
        assert len(fleet.plan.bodies) == 1
