"""Recognizes the turns of a conversation: which earlier request a request continues.

Clients repeat a conversation in the same bytes and append to it: the answer, then a new message or the results of
tools. So the messages of a request up to its last answer are the messages of an earlier request.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from inference_engine_proxy_server.requests.content import is_answer, read_messages
from inference_engine_proxy_server.requests.conversation import ROLE

__all__ = ["NO_TURN", "Turn", "key_of_session", "turn_of"]

NO_TURN = (None, None)
"""In place of the result of :func:`turn_of` for a request without messages."""

_HASHED_BYTES = 2048  # messages may contain pictures of many megabytes
_FEWEST_MESSAGES = 3  # a question, its answer and another question
_MOST_EXAMINED = 256  # of the latest messages: an answer and the results of its tools are not more
_SEPARATORS = b", \t\r\n"


def key_of_session(model: str | None, session: str) -> int:
    """The key of the requests of a session that name ``model``; ``None`` when they name none."""
    return hash((model, session))


class Turn(msgspec.Struct, frozen=True, gc=False):
    """The turn of a conversation that a request makes, if it may be another than the first.

    Attributes:
        key: of the request, see :func:`turn_of`.
        model: the model that it names; ``None`` when it names none.
        messages: the conversation so far, JSON; usually a list of objects.
        fields: header lines of the request, each ending in CRLF.
    """

    key: int
    model: str | None
    messages: msgspec.Raw
    fields: bytes

    def earlier_keys(self) -> Sequence[int]:
        """The keys that earlier requests of the conversation may have, most recent first.

        They are the key of the request itself, which the client may have sent before to get another answer, and that of
        the request to which the last answer belongs. Empty when the latest messages contain no answer to a question.
        """
        items = read_messages(self.messages)
        if len(items) < _FEWEST_MESSAGES:
            return ()
        text = memoryview(self.messages)
        end = last = _end_before(text, len(text) - 1)
        seen_answer = False
        for item in reversed(items[-_MOST_EXAMINED:]):
            role = ROLE.match(item)
            if role[1] == b"assistant" if role else is_answer(item):
                seen_answer = True
            elif seen_answer:
                closing = bytes(text[last:])
                earlier = bytes(text[max(0, end - _HASHED_BYTES) : end]) + closing
                return self.key, hash((self.model, end + len(closing), earlier[-_HASHED_BYTES:]))
            end = _end_before(text, end - len(memoryview(item)))
        return ()


def turn_of(model: str | None, messages: msgspec.Raw, fields: bytes) -> tuple[int, Turn | None]:
    """The key of a request, and the turn that it makes; ``None`` if it certainly is the first one.

    The key is the hash of the model, and of the length and the last 2 KiB of the messages. Arguments as of
    :class:`Turn`.
    """
    text = bytes(messages)
    key = hash((model, len(text), text[-_HASHED_BYTES:]))
    # Three messages have three braces. Searching for them is far cheaper than reading the messages.
    second = text.find(b"{", text.find(b"{") + 1)
    return key, Turn(key, model, messages, fields) if second > 0 and text.find(b"{", second + 1) > 0 else None


def _end_before(text: memoryview, end: int) -> int:
    """Where the last message before ``end`` ends, without the blanks and the comma after it."""
    while end and text[end - 1] in _SEPARATORS:
        end -= 1
    return end
