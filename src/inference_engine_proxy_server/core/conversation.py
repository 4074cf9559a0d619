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
    """Of a prompt whose text begins with ``shared`` bytes that come before anybody's question.

    Attributes:
        shared: bytes before the first question: tools, and what the system is told.
        opening: bytes up to the end of that question.
        history: bytes before the last message, if there are any between the first question and that; else 0.
        first_question: its first bytes.
        turn, last_turn: hashes of all messages, and of all that came before the last answer and the last message, so
            that one turn's first is the next one's second; 0: there is no such turn. Other processes have other ones.
    """

    shared: int
    opening: int
    history: int
    first_question: bytes
    turn: int
    last_turn: int


def parts_of(messages: bytes | memoryview, before: int) -> Parts | None:
    """The parts of a JSON list of messages, ``before`` bytes standing before it; ``None``: it is no such list."""
    try:
        raws = _messages_decoder.decode(messages)
        roles = (_message_decoder.decode(raw).role for raw in raws)
        at = next((at for at, role in enumerate(roles) if role == "user"), None)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if at is None:
        return None
    lengths = [len(memoryview(one)) for one in raws]
    shared = before + sum(lengths[:at])
    history = before + sum(lengths[:-1]) if at < len(raws) - 1 else 0
    turn = last_turn = 0
    for number, raw in enumerate(raws):
        turn = hash((turn, bytes(raw)))
        if number == len(raws) - 3 and number >= at:
            last_turn = turn
    return Parts(shared, shared + lengths[at], history, bytes(memoryview(raws[at])[:_NAMED_BYTES]), turn, last_turn)


def key_of(text: bytes) -> int:
    """64 bits of ``text`` that are the same in all processes of all replicas."""
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big")
