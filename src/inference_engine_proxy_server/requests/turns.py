"""Recognizes the turns of a conversation: which earlier request a request continues.

Clients repeat a conversation in the same bytes and append to it: the answer, then a new message or the results of
tools. So the messages of a request up to its last answer are the messages of an earlier request.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import ClassVar
from zlib import crc32

import msgspec

from inference_engine_proxy_server.requests.content import is_answer, read_messages
from inference_engine_proxy_server.requests.conversation import ROLE, key_of

__all__ = ["NO_TURN", "SharedTurn", "Turn", "turn_of"]

NO_TURN = (None, None)
"""In place of the result of :func:`turn_of` for a request without messages."""

_HASHED_BYTES = 512  # with the length enough to tell conversations apart; hashing more would cost microseconds
_MOST_EXAMINED = 256  # of the latest messages: an answer and the results of its tools are not more
_SEPARATORS = b", \t\r\n"
_USUAL_SEPARATORS = 64  # bytes between two messages; more are skipped, too, but cost a copy of the text
_ROLE, _ASSISTANT = b'"role"', b'"assistant"'
_USUAL_BEGINNINGS = (b'{"role":', b'{"role": ')
_ROLE_IS_NEXT = re.compile(rb'\{\s*+"role"\s*+:\s*+\Z')
_OTHER_ROLE = re.compile(rb'"role"\s*+:\s*+"(?!assistant")')
_USER = re.compile(rb'"role"\s*+:\s*+"user"')
_HASHED_QUESTION_BYTES = 4096
_LONGEST_BEGINNING = 64  # bytes of a message up to its role, blanks included


_Hashed = tuple[str | None, int, bytes]
"""The model; how long a conversation is, or 0 for a session; its text."""


def _shared_hash(hashed: _Hashed) -> int:
    """In place of the hash of Python, which is another one in each program.

    A checksum takes a tenth of the time of a cryptographic hash. One conversation in 30,000 is taken for another one,
    and goes to that one's backend if loads are equal.
    """
    model, length, text = hashed
    return crc32(text, crc32(b"%d %b" % (length, (model or "").encode())))


class Turn(msgspec.Struct, frozen=True, gc=False):
    """The turn of a conversation that a request makes, if it may be another than the first.

    Attributes:
        key: of the request, see :func:`turn_of`.
        model: the model that it names; ``None`` when it names none.
        messages: the conversation so far, JSON; usually a list of objects.
        fields: header lines of the request, each ending in CRLF.
        has_roles: whether every message has a role. Reasoning and tool calls in the input of a response have none.
        hashed: a hash from -2**63 to below 2**63; the same in all workers of one proxy.
    """

    hashed: ClassVar[Callable[[_Hashed], int]] = staticmethod(hash)

    key: int
    model: str | None
    messages: msgspec.Raw
    fields: bytes
    has_roles: bool

    def earlier_keys(self) -> Sequence[int]:
        """The keys that earlier requests of the conversation may have, most recent first.

        They are the key of the request itself, which the client may have sent before to get another answer, and that of
        the request to which the last answer belongs. Empty when the latest messages contain no answer to a question.
        """
        text = bytes(self.messages)
        end = _end_of_question(text, has_roles=self.has_roles)
        if end is None:
            end = _end_of_question_read(text, read_messages(self.messages))
        if not end:
            return ()
        closing = text[_end_before(text, len(text) - 1) :]
        earlier = text[max(0, end - _HASHED_BYTES) : end] + closing
        return self.key, type(self).hashed((self.model, end + len(closing), earlier[-_HASHED_BYTES:]))

    def key_of_session(self, session: str) -> int:
        """The key of the requests of a session that name the same model, or none if this one names none."""
        return type(self).hashed((self.model, 0, session.encode()))

    def first_question_key(self) -> int | None:
        """A 64-bit key of the model and the user's first message, the same in all replicas; ``None`` without one."""
        text = bytes(self.messages)
        begins = _USER.search(text)
        if begins is None:
            return None
        ends = text.find(_ROLE, begins.end())
        question = text[begins.end() : len(text) if ends < 0 else ends]
        return key_of(b"%b %b" % ((self.model or "").encode(), question[:_HASHED_QUESTION_BYTES]))


class SharedTurn(Turn, frozen=True, gc=False):
    """A turn whose keys are the same in all replicas of the proxy."""

    hashed: ClassVar[Callable[[_Hashed], int]] = staticmethod(_shared_hash)


def turn_of(
    model: str | None, messages: msgspec.Raw, fields: bytes, *, has_roles: bool = True, kind: type[Turn] = Turn
) -> tuple[int, Turn | None]:
    """The key of a request, and the turn that it makes; ``None`` if it certainly is the first one.

    The key is the hash of the model, and of the length and the last 512 bytes of the messages. Arguments as of
    :class:`Turn`; ``kind`` determines the hash.
    """
    text = bytes(messages)
    key = kind.hashed((model, len(text), text[-_HASHED_BYTES:]))
    # Three messages have three braces. A search for one byte is far cheaper than any other way to count messages.
    second = text.find(b"{", text.find(b"{") + 1)
    if second < 0 or text.find(b"{", second + 1) < 0:
        return key, None
    return key, kind(key, model, messages, fields, has_roles)


def _end_of_question(text: bytes, *, has_roles: bool) -> int | None:
    """Where the message ends that the last answer belongs to; 0 without an answer; ``None`` if items must be read.

    A quotation mark inside a string of JSON follows a backslash, so a text never looks like a role.
    """
    at = text.rfind(_ASSISTANT)
    if at < 0:
        return 0 if has_roles or not _has_items_without_role(text, 0, len(text)) else None
    for _ in range(_MOST_EXAMINED):
        begins = _beginning(text, at)
        if begins < 0:
            return None
        end = _end_before(text, begins)
        role = text.rfind(_ROLE, 0, end)
        if role < 0 or (not has_roles and _has_items_without_role(text, role, end)):
            return None
        if _OTHER_ROLE.match(text, role):
            return end
        at = text.find(_ASSISTANT, role, end)  # two answers in succession
    return 0


def _beginning(text: bytes, at: int) -> int:
    """Where the message begins whose role is the value at ``at``; -1 if its role is not its first member."""
    for usual in _USUAL_BEGINNINGS:  # a third of the cost of the expression
        begins = at - len(usual)
        if text.startswith(usual, max(0, begins)):
            return begins
    found = _ROLE_IS_NEXT.search(text, max(0, at - _LONGEST_BEGINNING), at)
    return -1 if found is None else found.start()


def _has_items_without_role(text: bytes, start: int, end: int) -> bool:
    return text.find(b'_call"', start, end) >= 0 or text.find(b'"reasoning"', start, end) >= 0


def _end_of_question_read(text: bytes, items: Sequence[msgspec.Raw]) -> int:
    """The same, from the ``items`` of ``text``; 0 without an answer to a question."""
    end = _end_before(text, len(text) - 1)
    seen_answer = False
    for item in reversed(items[-_MOST_EXAMINED:]):
        role = ROLE.match(item)
        if role[1] == b"assistant" if role else is_answer(item):
            seen_answer = True
        elif seen_answer:
            return end
        end = _end_before(text, end - len(item))
    return 0


def _end_before(text: bytes, end: int) -> int:
    """Where the last message before ``end`` ends, without the blanks and the comma after it."""
    start = max(0, end - _USUAL_SEPARATORS)
    kept = text[start:end].rstrip(_SEPARATORS)
    return start + len(kept) if kept else len(text[:end].rstrip(_SEPARATORS))
