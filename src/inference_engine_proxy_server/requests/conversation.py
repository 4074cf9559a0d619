"""Where the parts of a conversation end: what many of them begin with, how this one begins, and what was said before.

Replicas of a proxy tell each other nothing. What all of them can see alike is the text: a conversation's first question
is the same in each of its requests, so its hash is a name by which every replica finds the same place for it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b

import msgspec

__all__ = ["Parts", "key_of", "parts_of"]

_NAMED_BYTES = 4096  # of the first question

# Clients write the role first, so that the rest of a long message need not be read.
_ROLE = re.compile(rb'\{\s*"role"\s*:\s*"([a-z]*)"')


class _Message(msgspec.Struct, gc=False):
    role: str | int | float | bool | None = None


_message_decoder = msgspec.json.Decoder(_Message)


class Parts(msgspec.Struct, frozen=True, gc=False):
    """Of a prompt's text; all but the last are positions in it.

    Attributes:
        shared: where the first question begins. Before it stands what nobody asks: tools, and what the system is told.
        opening: where it ends.
        history: where the last message but one ends, if there is any between the first question and the last; else 0.
        turn: where the last message ends.
        last_turn: where the one ended that was the last when this conversation was here before; 0: it was not.
        first_question: its first bytes.
    """

    shared: int
    opening: int
    history: int
    turn: int
    last_turn: int
    first_question: bytes


def parts_of(messages: Sequence[msgspec.Raw], before: int, size: int) -> Parts | None:
    """The parts of a text of ``size`` bytes that ends with ``messages``; ``None``: nobody asks anything in them.

    Args:
        messages: JSON objects.
        before: bytes that stand before them.
        size: of all.
    """
    try:
        first = next((at for at, message in enumerate(messages) if _is_question(message)), None)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if first is None:
        return None
    question = memoryview(messages[first])
    shared = before + sum(len(memoryview(message)) for message in messages[:first])
    followers = len(messages) - 1 - first
    last = size - len(memoryview(messages[-1]))  # where the last one begins
    return Parts(
        shared,
        shared + len(question),
        last if followers else 0,
        size,
        last - len(memoryview(messages[-2])) if followers > 1 else 0,
        bytes(question[:_NAMED_BYTES]),
    )


def _is_question(message: msgspec.Raw) -> bool:
    role = _ROLE.match(message)
    return (role[1] == b"user") if role else _message_decoder.decode(message).role == "user"


def key_of(text: bytes) -> int:
    """64 bits of ``text`` that are the same in all processes of all replicas."""
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big")
