"""Where the parts of a conversation end: what many of them begin with, how this one begins, and what was said before.

Replicas of a proxy tell each other nothing. What all of them can see alike is the text: a conversation's first question
is the same in each of its requests, so its hash is a name by which every replica finds the same place for it.
"""

from __future__ import annotations

from hashlib import blake2b

import msgspec

__all__ = ["Parts", "key_of", "parts_of"]

_NAMED_BYTES = 4096  # of the first question


class _Message(msgspec.Struct, gc=False):
    role: str | int | float | bool | None = None


_messages_decoder = msgspec.json.Decoder(list[msgspec.Raw])
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


def parts_of(text: bytes, messages: bytes | msgspec.Raw, before: int) -> Parts | None:
    """The parts of ``text``, in which the JSON list ``messages`` begins at ``before``; ``None``: it is no such list."""
    try:
        raws = _messages_decoder.decode(messages)
        roles = (_message_decoder.decode(raw).role for raw in raws)
        first = next((at for at, role in enumerate(roles) if role == "user"), None)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if first is None:
        return None
    end = before + 1
    ends = []
    for raw in raws:
        start = text.find(b"{", end)  # nothing but a comma and blanks stands before it
        end = start + len(memoryview(raw))
        ends.append(end)
        if len(ends) == first + 1:
            shared = start
    last = len(ends) - 1
    return Parts(
        shared,
        ends[first],
        ends[-2] if last > first else 0,
        end,
        ends[last - 2] if last - 2 >= first else 0,
        text[shared : min(ends[first], shared + _NAMED_BYTES)],
    )


def key_of(text: bytes) -> int:
    """64 bits of ``text`` that are the same in all processes of all replicas."""
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big")
