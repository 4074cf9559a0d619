"""The parts of a conversation, by their byte offsets."""

from __future__ import annotations

import msgspec
import pytest

from inference_engine_proxy_server.requests.conversation import Parts, key_of, parts_of


def a_conversation(*contents: str, roles: tuple[str, ...] = ("system", "user", "assistant", "user")) -> bytes:
    return msgspec.json.encode(
        [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    )


def parts_after(before: int, messages: bytes) -> Parts | None:
    """The parts of a text that ends with ``messages``, without separators."""
    raws = msgspec.json.decode(messages, type=list[msgspec.Raw])
    return parts_of(b"".join((b"b" * before, *raws)), raws, before)


def test_the_shared_part_ends_at_the_first_question() -> None:
    parts = parts_after(500, a_conversation("s" * 1000, "hi"))

    assert parts is not None
    assert 1500 < parts.shared < 1550
    assert parts.shared < parts.opening < parts.shared + 50
    assert parts.history == 0


def test_history_ends_before_the_last_message() -> None:
    parts = parts_after(0, a_conversation("s", "q" * 1000, "a" * 1000, "n" * 1000))

    assert parts is not None
    assert 2000 < parts.history < 2200


def test_the_last_turn_of_a_request_is_the_turn_of_the_previous_request() -> None:
    messages = a_conversation("s", "q", "a", "more")
    first = parts_after(0, a_conversation("s", "q"))
    second = parts_after(0, messages)

    assert first is not None
    assert second is not None
    assert first.turn == second.last_turn
    assert messages[1:].replace(b"},{", b"}{")[: first.turn].endswith(b'"q"}')
    assert first.last_turn == 0
    assert first.first_question == second.first_question == b'{"role":"user","content":"q"}'


def test_blanks_between_messages_are_not_counted() -> None:
    parts = parts_after(0, b'[ {"role": "user", "content": "{"} ,\n {"role": "user", "content": "}"}\n]')

    assert parts == Parts(0, 32, 32, 64, 0, b'{"role": "user", "content": "{"}')


@pytest.mark.parametrize(
    "question",
    [
        '{ "role" : "user", "content": "q"}',
        '{"content": "q", "role": "user"}',
        '{"role": "\\u0075ser", "content": "q"}',
    ],
)
def test_a_user_message_is_recognized_in_any_notation(question: str) -> None:
    parts = parts_after(0, f'[{{"role": "system", "content": "\\"role\\": \\"user\\""}}, {question}]'.encode())

    assert parts is not None
    assert parts.first_question == question.encode()


@pytest.mark.parametrize(
    "messages", [b"[]", b"[1]", b'["user"]', b'[{"role": "tool"}]', b'[{"role": "users"}]', b"[[]]"]
)
def test_without_a_user_message_there_are_no_parts(messages: bytes) -> None:
    assert parts_after(0, messages) is None


def test_the_key_is_the_same_in_every_process() -> None:
    assert key_of(b"http://llm-1:8080") == 0xA6CBDA868E2053AF
