"""Splits a chat prompt into the parts that other requests share: common start, first question, history, last turn.

Replicas of the proxy do not communicate, but all of them see the same text. The first question of a conversation is the
same in every one of its requests, so its hash is a key by which every replica picks the same backend.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b

import msgspec

from inference_engine_proxy_server.requests.content import role_of

__all__ = ["ROLE", "Parts", "key_of", "parts_of"]

_HASHED_QUESTION_BYTES = 4096

ROLE = re.compile(rb'\{\s*"role"\s*:\s*"([a-z]*)"')
"""Matches a message at its beginning. Clients write the role first, so a long message rarely has to be decoded."""


class Parts(msgspec.Struct, frozen=True, gc=False):
    """Where the parts of a prompt's text end; all positions are byte offsets.

    Attributes:
        shared: end of what precedes the first question: tools and system messages.
        opening: end of the first question.
        history: start of the last message; 0 when the first question is the last message.
        turn: end of the last message.
        last_turn: end of the message that was last in the conversation's previous request; 0 when there was none.
        first_question: its first bytes.
    """

    shared: int
    opening: int
    history: int
    turn: int
    last_turn: int
    first_question: bytes


def parts_of(text: bytes, messages: Sequence[msgspec.Raw], before: int) -> Parts | None:
    """The parts of a prompt's ``text``, which ends with ``messages``; ``None`` when no message is from the user.

    Args:
        text: the whole text.
        messages: JSON objects.
        before: bytes of the text that precede the messages.
    """
    shared, followers, size = before, len(messages), len(text)
    try:
        for message in messages:
            followers -= 1
            role = ROLE.match(text, shared)
            if role[1] == b"user" if role else role_of(message) == "user":
                break
            shared += len(message)
        else:
            return None
    except ValueError:
        return None
    opening = shared + len(message)
    last_start = size - len(messages[-1])
    return Parts(
        shared,
        opening,
        last_start if followers else 0,
        size,
        last_start - len(messages[-2]) if followers > 1 else 0,
        text[shared : min(opening, shared + _HASHED_QUESTION_BYTES)],
    )


def key_of(text: bytes) -> int:
    """A 64-bit hash of ``text`` that is the same in all processes of all replicas."""
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big")
