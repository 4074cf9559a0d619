"""The parts of a conversation are found in its bytes."""

from __future__ import annotations

import msgspec
import pytest

from inference_engine_proxy_server.core.conversation import key_of, parts_of


def a_conversation(*contents: str, roles: tuple[str, ...] = ("system", "user", "assistant", "user")) -> bytes:
    return msgspec.json.encode(
        [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    )


def test_what_comes_before_the_first_question_is_shared() -> None:
    parts = parts_of(a_conversation("s" * 1000, "hi"), before=500)

    assert parts is not None
    assert 1500 < parts.shared < 1550
    assert parts.shared < parts.opening < parts.shared + 50
    assert parts.history == 0


def test_history_ends_before_the_last_message() -> None:
    parts = parts_of(a_conversation("s", "q" * 1000, "a" * 1000, "n" * 1000), before=0)

    assert parts is not None
    assert 2000 < parts.history < 2200


def test_turn_is_the_next_ones_last_turn() -> None:
    first = parts_of(a_conversation("s", "q"), 0)
    second = parts_of(a_conversation("s", "q", "a", "more"), 0)
    other = parts_of(a_conversation("s", "another", "a", "more"), 0)

    assert first is not None
    assert second is not None
    assert other is not None
    assert first.turn == second.last_turn != other.last_turn
    assert first.last_turn == 0
    assert first.first_question == second.first_question != other.first_question


@pytest.mark.parametrize("messages", [b"", b'"text"', b"{}", b"[1]", b'[{"role": "tool"}]', b"[[[", b"\xff"])
def test_what_is_no_conversation_has_no_parts(messages: bytes) -> None:
    assert parts_of(messages, 0) is None


def test_key_is_the_same_in_every_process() -> None:
    assert key_of(b"http://llm-1:8080") == 0xA6CBDA868E2053AF
