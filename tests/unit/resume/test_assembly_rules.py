"""Which requests without ``stream`` are sent as streams."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inference_engine_proxy_server.requests.content import all_members
from inference_engine_proxy_server.resume.assembly_rules import as_stream, can_be_assembled

CHAT = {"model": "m", "messages": [{"role": "user", "content": "a"}]}


def is_allowed(**members: Any) -> bool:
    return can_be_assembled(all_members(json.dumps(members).encode()) or {})


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"stream": False},
        {"stream": None, "n": 1, "logprobs": False, "echo": False},
        {"temperature": 0, "tools": [], "response_format": {"type": "json_object"}, "stop": ["a", "b"]},
        {"reasoning_format": "deepseek"},
        {"stream_options": {"include_usage": True}},
    ],
)
def test_known_members_are_allowed(members: dict[str, Any]) -> None:
    assert is_allowed(**CHAT, **members)


@pytest.mark.parametrize(
    "members",
    [
        {"n": 2}, {"n": 1.5}, {"best_of": 2}, {"logprobs": True}, {"logprobs": 0}, {"top_logprobs": 1}, {"n_probs": 5},
        {"echo": True}, {"suffix": "a"}, {"verbose": True}, {"return_progress": True}, {"stream": "false"},
        {"continue_final_message": True}, {"add_generation_prompt": False}, {"reasoning_format": "deepseek-legacy"},
        {"n_indent": 2}, {"a_later_member": 1}, {"messages": [{"role": "assistant", "content": "a"}]},
        {"messages": "a"}, {"messages": [5]},
    ],
)  # fmt: skip
def test_members_that_a_stream_does_not_show_are_not(members: dict[str, Any]) -> None:
    assert not is_allowed(**{**CHAT, **members})


@pytest.mark.parametrize(("prompt", "allowed"), [("a", True), (["a"], False), ([1, 2], False), (None, False)])
def test_a_prompt_must_be_one_text(prompt: Any, allowed: bool) -> None:
    assert is_allowed(prompt=prompt) is allowed


def test_a_body_without_a_prompt_is_not_allowed() -> None:
    assert not is_allowed(model="m")


def test_the_request_stays_the_same_apart_from_the_stream() -> None:
    body = (
        b'{"seed": 1e2, "messages": [{"role": "user", "content": "\\u00e9"}], "stream": false, "stream_options": null}'
    )
    stream = as_stream(all_members(body) or {})
    assert b'"seed":1e2' in stream
    assert b'[{"role": "user", "content": "\\u00e9"}]' in stream
    assert json.loads(stream) == {
        **json.loads(body),
        "stream": True,
        "stream_options": {"include_usage": True},
        "timings_per_token": True,
    }
