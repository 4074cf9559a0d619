"""A request is recognized as the continuation of an earlier one by the bytes of its messages."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import msgspec
import pytest

from inference_engine_proxy_server.requests.content import read_content
from inference_engine_proxy_server.requests.turns import SharedTurn, Turn, turn_of

Message = dict[str, Any]
SYSTEM, QUESTION = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}
ANSWER, NEXT = {"role": "assistant", "content": "Hi {you}!"}, {"role": "user", "content": "And?"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f"}}]}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "5"}
LATE_ROLE = {"content": [{"type": "text", "text": "Well."}], "role": "assistant"}


def raw(messages: object, **notation: Any) -> msgspec.Raw:
    """The messages as the proxy finds them in a body."""
    return read_content(b"/", json.dumps({"model": "m", "messages": messages}, **notation).encode()).raw_messages


def made(messages: object, model: str | None = "m", **notation: Any) -> tuple[int, Turn | None]:
    """The key of a request with ``messages``, and its turn; the same whether or not items may lack a role."""
    found = raw(messages, **notation)
    (key, turn), (other_key, other) = (turn_of(model, found, b"", has_roles=has_roles) for has_roles in (False, True))
    assert key == other_key
    if turn is not None and not re.search(rb'_call"|"reasoning"', found):
        assert other is not None
        assert turn.earlier_keys() == other.earlier_keys()
    return key, turn


def key(messages: list[Message], model: str | None = "m", **notation: Any) -> int:
    return made(messages, model, **notation)[0]


def earlier(messages: list[Message], model: str | None = "m", **notation: Any) -> list[int]:
    _, turn = made(messages, model, **notation)
    return [] if turn is None else list(turn.earlier_keys())


@pytest.mark.parametrize("notation", [{}, {"separators": (",", ":")}, {"indent": 2}])
@pytest.mark.parametrize(
    ("before", "added"),
    [
        ([QUESTION], [ANSWER, NEXT]),
        ([SYSTEM, QUESTION], [ANSWER, NEXT]),
        ([SYSTEM, QUESTION, ANSWER, NEXT], [ANSWER, NEXT]),
        ([QUESTION], [CALL, RESULT]),
        ([QUESTION], [CALL, RESULT, RESULT]),
        ([QUESTION, CALL, RESULT], [ANSWER, NEXT]),
        ([QUESTION], [LATE_ROLE, NEXT]),
        ([QUESTION], [CALL, ANSWER, NEXT]),
        ([QUESTION, NEXT], [ANSWER]),
        ([{"role": "user", "content": "x" * 9000}], [ANSWER, NEXT]),
        ([SYSTEM, {"role": "user", "content": "x" * 1990}], [ANSWER, NEXT]),
    ],
)
def test_request_continues_the_one_that_its_last_answer_belongs_to(
    before: list[Message], added: list[Message], notation: dict[str, Any]
) -> None:
    assert earlier([*before, *added], **notation) == [key([*before, *added], **notation), key(before, **notation)]


@pytest.mark.parametrize(
    "items",
    [
        [{"role": "assistant", "content": [{"type": "output_text", "text": "Hi"}]}, NEXT],
        [{"type": "reasoning", "id": "r"}, {"type": "function_call", "call_id": "1"},
         {"type": "function_call_output", "call_id": "1", "output": "5"}],
    ],
)  # fmt: skip
def test_reasoning_and_tool_calls_of_a_response_are_answers(items: list[Message]) -> None:
    assert earlier([QUESTION, *items])[1] == key([QUESTION])


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [QUESTION],
        [SYSTEM, QUESTION],
        [SYSTEM, QUESTION, NEXT, NEXT],
        [ANSWER, QUESTION, NEXT],
        [1, 2, {"a": {"b": {}}}],
    ],
)
def test_messages_without_an_answer_continue_nothing(messages: list[Any]) -> None:
    assert earlier(messages) == []


@pytest.mark.parametrize("messages", ["{{{", 5, {"a": {"b": {"c": 1}}}, None])
def test_malformed_messages_continue_nothing(messages: object) -> None:
    _, turn = made(messages)
    assert turn is None or turn.earlier_keys() == ()


def test_only_the_latest_messages_are_examined() -> None:
    assert earlier([QUESTION, CALL, *[RESULT] * 100])[1] == key([QUESTION])
    assert earlier([QUESTION, ANSWER, *[NEXT] * 1000])[1] == key([QUESTION])  # their roles are found without reading
    assert earlier([QUESTION, LATE_ROLE, *[NEXT] * 1000]) == []


def test_lone_question_is_told_from_a_continued_conversation_without_being_read() -> None:
    found = [made(some)[1] for some in ([QUESTION], [SYSTEM, QUESTION], [QUESTION, ANSWER, NEXT])]
    assert [turn is None for turn in found] == [True, True, False]


def test_conversations_with_another_model_or_other_messages_are_others() -> None:
    keys = {
        key([QUESTION]), key([QUESTION], "n"), key([QUESTION], None), key([NEXT]), key([SYSTEM, QUESTION]),
        key([{"role": "user", "content": "x" * 9000}]), key([{"role": "user", "content": "x" * 9001}]),
        key([{"role": "user", "content": "x" * 8999 + "y"}]),
    }  # fmt: skip
    assert len(keys) == 8


def test_sessions_differ_by_name_and_model() -> None:
    for kind in (Turn, SharedTurn):
        turns = [kind(0, model, msgspec.Raw(b"[]"), b"", has_roles=True) for model in ("m", None)]
        assert len({turn.key_of_session(name) for turn in turns for name in ("a", "b")}) == 4


def test_shared_keys_do_not_depend_on_the_process() -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    key, turn = turn_of("m", msgspec.Raw(msgspec.json.encode(messages)), b"", kind=SharedTurn)
    first, none = turn_of("m", msgspec.Raw(msgspec.json.encode(messages[:1])), b"", kind=SharedTurn)
    assert turn is not None
    assert none is None
    assert (first, key) == (3853984289, 1466703622)
    assert turn.earlier_keys() == (key, first)
    assert -(2**63) <= turn.key_of_session("s") < 2**63


def test_hostile_messages_take_bounded_time() -> None:
    answers = b"[%b]" % b",".join([b'{"role":"assistant"}'] * 200_000)
    blanks = b'[{"role":"user"},%b{"role":"assistant"},{"role":"user"}]' % (b" " * 10_000_000)
    for text in (answers, blanks):
        _, turn = turn_of("m", msgspec.Raw(text), b"")
        assert turn is not None
        before = time.process_time()
        turn.earlier_keys()
        assert time.process_time() - before < 0.5


def first_question(messages: list[Message], model: str | None = "m", **notation: Any) -> int | None:
    _, turn = made(messages, model, **notation)
    assert turn is not None
    return turn.first_question_key()


def test_all_turns_of_a_conversation_have_one_first_question() -> None:
    turns = [[SYSTEM, QUESTION, *[ANSWER, NEXT] * count] for count in (1, 2, 7)]

    assert len({first_question(turn) for turn in turns}) == 1


def test_key_of_a_first_question_is_the_same_in_every_process() -> None:
    """Replicas of different machines must agree, so this value must not change from release to release either."""
    assert first_question([QUESTION, ANSWER, NEXT]) == 0xC7DA2B6DC422F6E0


def test_first_questions_differ_by_text_and_model() -> None:
    rest = [ANSWER, NEXT]
    keys = {first_question([QUESTION, *rest]), first_question([QUESTION, *rest], "n"), first_question([NEXT, *rest])}

    assert len(keys) == 3


def test_messages_without_a_question_have_no_first_one() -> None:
    assert first_question([SYSTEM, ANSWER, ANSWER]) is None
