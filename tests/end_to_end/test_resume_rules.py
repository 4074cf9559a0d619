"""What is resumed, what is not, and how each looks to the client. Scripted engines fail as real ones do."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import pytest

from end_to_end.breaking_engine import (
    CHAT,
    COMPLETIONS,
    WORDS,
    Breaks,
    Engine,
    Fleet,
    Plan,
    aborts,
    closes,
    closes_after_a_blank_line,
    closes_after_one_word,
    ends_inside_an_event,
    ends_without_a_finish,
    finishes_one_word_without_an_end,
    finishes_without_an_end,
    objects,
    rejects,
    reports_an_error,
    reports_an_error_of_the_request,
    stalls,
    text,
    two_engines,
)
from inference_engine_proxy_server.resume.dialects import DIALECTS
from support.live_proxy import live_proxy

BREAKS = [closes, ends_without_a_finish, ends_inside_an_event, reports_an_error, aborts]


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


async def test_an_answer_of_one_word_that_lacks_only_its_end_is_ended_by_the_proxy() -> None:
    async with two_engines(finishes_one_word_without_an_end) as fleet:
        events = await fleet.stream()
        assert text(events) == "one"
        assert events[-1] == b"data: [DONE]\n\n"


async def test_the_largest_of_two_limits_decides_whether_an_answer_is_complete() -> None:
    """vLLM ignores ``max_tokens`` beside ``max_completion_tokens``."""
    async with two_engines(closes) as fleet:
        assert text(await fleet.stream(max_tokens=2, max_completion_tokens=9)) == "".join(WORDS)
        second = fleet.plan.bodies[1]
        assert (second["max_tokens"], second["max_completion_tokens"]) == (1, 6)


KEPT, TRIMMED, LOST = (
    "<user>a<assistant>begun \n\n",
    "<user>a<assistant>begun",
    "<user>a<assistant>begun<end><assistant>",
)


@pytest.mark.parametrize(
    ("prompt", "path", "breaks", "refused"),
    [
        (KEPT, CHAT, closes_after_a_blank_line, {}),
        (TRIMMED, CHAT, closes_after_a_blank_line, {"trailing_space": 1}),
        (TRIMMED, CHAT, closes, {}),
        (TRIMMED, COMPLETIONS, closes_after_a_blank_line, {}),
        (LOST, CHAT, closes, {"no_other_backend": 1}),
        (LOST, COMPLETIONS, closes, {}),
    ],
)
async def test_vllm_continues_a_chat_only_if_its_prompt_has_the_whole_text(
    prompt: str, path: str, breaks: Breaks, refused: dict[str, float]
) -> None:
    async with two_engines(breaks, owner="vllm", prompt=prompt) as fleet:
        assert is_broken(await fleet.stream(path)) is bool(refused)
        assert await fleet.counted("resume_refusals") == refused


@pytest.mark.parametrize("stop", ["threesome", ["never", "three"], " three four"])
async def test_a_stop_string_that_has_begun_is_not_missed(stop: str | list[str]) -> None:
    async with two_engines(closes) as fleet:
        assert is_broken(await fleet.stream(stop=stop))
        assert await fleet.counted("resume_refusals") == {"stop_string": 1}


async def test_other_stop_strings_are_passed_on() -> None:
    async with two_engines(closes) as fleet:
        assert text(await fleet.stream(stop=["four", "\n"])) == "".join(WORDS)
        assert fleet.plan.bodies[1]["stop"] == ["four", "\n"]


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
    async with two_engines(closes, extra=delta) as fleet:
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
    "hidden_reasoning": {"include_reasoning": False},
}


@pytest.mark.parametrize("rule", DIALECTS[CHAT].rules)
async def test_a_request_that_breaks_a_rule_gets_the_error_event(rule: str) -> None:
    fields = EXCLUDED[rule]
    async with two_engines(closes) as fleet:
        assert is_broken(await fleet.stream(COMPLETIONS if "prompt" in fields else CHAT, **fields))
        assert await fleet.counted("resume_refusals") == {rule: 1}
        assert len(fleet.plan.bodies) == 1
