"""Reads what determines the time to the first token: how long a prompt is, and how it begins.

The body is decoded once, and only small members become Python objects. The prompt is kept as the bytes that the client
sent, and its beginnings are identified by hashes: clients repeat a conversation in the same bytes and append to it. A
prefix that is shared, but encoded in other bytes, is not recognized; engines report what they actually reused
(:mod:`~.prefix_index`).
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections.abc import Sequence

import msgspec

from inference_engine_proxy_server.requests.content import PromptContent, read_content, read_list, read_prompt_content
from inference_engine_proxy_server.requests.conversation import Parts, key_of, parts_of
from inference_engine_proxy_server.requests.headers import session_id
from inference_engine_proxy_server.requests.token_sizes import TokenSizes

__all__ = ["ENDS", "Prompt", "read_prompt"]

_FIRST_BLOCK = 512  # bytes, some 128 tokens: a shorter shared prefix does not justify waiting in another queue
_BLOCKS_A_SIZE = 16  # bounds the rest after the last whole block to a sixteenth of the prompt
_SIZES = 8  # of blocks: the last end is at 2 MB, half a million tokens


def _block_ends() -> tuple[int, ...]:
    ends, end = [], 0
    for doubling in range(_SIZES):
        for _ in range(_BLOCKS_A_SIZE):
            end += _FIRST_BLOCK << doubling
            ends.append(end)
    return tuple(ends)


ENDS: Sequence[int] = _block_ends()
"""Byte offsets in a prompt's text at which blocks end: the same for all prompts, with blocks that grow."""

_BLOCKS = tuple(map(slice, (0, *ENDS), ENDS))
_NOTHING = array("q")

_PLACEMENT_BYTES = 512  # of a prompt's start; chosen by simulation, see docs/balancing.md

# A picture is long in bytes and short in tokens: some 250 to 2,000 of them, by model and size.
_PICTURE_TOKENS = 1000
_PICTURE = b";base64,"
_SAMPLES = 8  # positions at which the text is tested for base64: a picture small enough to be missed hardly counts
_SAMPLE_BYTES = 64
_PICTURE_SAMPLE = re.compile(rb"[A-Za-z0-9+/=]{%d}" % _SAMPLE_BYTES)

# Engines reuse no prefix for these.
_NEVER_CACHED = ("/embeddings", "/embedding", "/rerank", "/reranking", "/score", "/pooling", "/classify", "/tokenize")

_LIST = ord("[")
_LIST_START_BYTES = 64  # searched for the first item of a list, blanks included


class Prompt:
    """The facts about a request's prompt that routing uses. Immutable once :func:`read_prompt` has returned it.

    It has more than 15 attributes: policies read them one by one, and one object per prompt is the cheapest.

    Attributes:
        model: the model as found by :func:`~.content.read_content`.
        size: bytes of the prompt's raw text; of the whole body when no prompt is found in it.
        bytes_a_token: bytes per token of its model, learned from replies.
        tokens: estimated tokens.
        is_one_text: the engine reads it as one text. False for a list of independent texts (``input`` of embeddings),
            and when no prompt is found.
        is_plain: all its tokens come from that text, which is at least one block long: no pictures, no stored history.
        chain: 64-bit hashes of its beginnings: item ``i`` stands for the model and the first ``ENDS[i]`` bytes. They
            differ between processes. Empty when the text is shorter than a block, or engines cache nothing of it.
        session: the session that the client names; ``None`` when it names none.
        answer_tokens: the most tokens that the answer may have; ``None`` when the request sets no limit.
        is_streamed: the request asks for a stream.
        start: the first bytes of its raw text.
        shared, opening, history: bytes before the first question, up to its end, and before the last message if that is
            another one; 0 when there is no such part.
        turn, last_turn: hashes of it and of the previous prompt in its conversation; 0 when there is none.
    """

    __slots__ = (
        "_first_question", "answer_tokens", "bytes_a_token", "chain", "history", "is_one_text", "is_plain",
        "is_streamed", "last_turn", "model", "opening", "session", "shared", "size", "start", "tokens", "turn",
    )  # fmt: skip

    def __init__(self, model: str | None, size: int, bytes_a_token: float) -> None:
        self.model = model
        self.size = size
        self.bytes_a_token = bytes_a_token
        self.tokens = size / bytes_a_token
        self.is_one_text = False
        self.is_plain = False
        self.chain: array[int] = _NOTHING
        self.session: str | None = None
        self.answer_tokens: int | None = None
        self.is_streamed = False
        self.start = b""
        self.shared = 0
        self.opening = 0
        self.history = 0
        self.turn = 0
        self.last_turn = 0
        self._first_question = b""

    def __repr__(self) -> str:
        return f"Prompt(model={self.model!r}, size={self.size}, tokens={self.tokens:.0f})"

    def set_parts(self, parts: Parts, text: bytes) -> None:
        """Take over the parts of a conversation; ``chain`` must be set already."""
        self.shared, self.opening, self.history = parts.shared, parts.opening, parts.history
        self.turn = self._hash_up_to(parts.turn, text)
        self.last_turn = self._hash_up_to(parts.last_turn, text) if parts.last_turn else 0
        self._first_question = parts.first_question

    def _hash_up_to(self, end: int, text: bytes) -> int:
        blocks = bisect_right(ENDS, end)
        return hash((self.chain[blocks - 1], text[ENDS[blocks - 1] : end]) if blocks else text[:end])

    @property
    def shared_key(self) -> int:
        """A 64-bit key of what precedes the first question, the same in all processes of all replicas."""
        return key_of(self.start)

    @property
    def conversation_key(self) -> int:
        """A 64-bit key that all requests of a conversation share, the same in all processes of all replicas."""
        return key_of(self._first_question) if self._first_question and self.session is None else self.placement_key

    @property
    def placement_key(self) -> int:
        """A 64-bit key of its session, else of its beginning, the same in all processes of all replicas."""
        return key_of(self.start if self.session is None else self.session.encode())


def read_prompt(target: bytes, path: str, fields: bytes, body: bytes, token_sizes: TokenSizes) -> Prompt:
    """The prompt in ``body``. A malformed body is no error here: the engine reports it.

    Args:
        target: path and query as sent.
        path: without the query.
        fields: header lines, each ending in CRLF.
        body: any bytes.
        token_sizes: estimates bytes per token.
    """
    content = read_prompt_content(body) if body else None
    if content is None:
        model = read_content(target, body, fields).model
        prompt = Prompt(model, len(body), token_sizes.of(model))
        prompt.start = body[:_PLACEMENT_BYTES]
    else:
        model = content.model or read_content(target, body, fields).model
        prompt = _prompt_of(content, model, path, body, token_sizes)
    prompt.session = session_id(fields) or prompt.session
    return prompt


def _prompt_of(content: PromptContent, model: str | None, path: str, body: bytes, token_sizes: TokenSizes) -> Prompt:
    messages = content.messages or _messages_in(content.input)
    text = _text_of(content, messages)
    prompt = Prompt(model, len(text) or len(body), token_sizes.of(model))
    pictures, picture_bytes = _pictures_in(text)
    if pictures:
        prompt.tokens = (len(text) - picture_bytes) / prompt.bytes_a_token + pictures * _PICTURE_TOKENS
    is_never_cached = path.endswith(_NEVER_CACHED)
    if not is_never_cached:
        prompt.chain = _chain_of(text, model, content.cache_salt)
    if messages and not is_never_cached:
        before = len(content.tools) + len(content.system) + len(content.instructions)
        parts = parts_of(messages, before, len(text))
        if parts is not None:
            prompt.set_parts(parts, text)
    prompt.start = text[:_PLACEMENT_BYTES] or body[:_PLACEMENT_BYTES]
    prompt.is_streamed = content.is_streamed
    prompt.answer_tokens = content.answer_tokens
    if isinstance(content.prompt_cache_key, str):
        prompt.session = content.prompt_cache_key
    is_list = bool(content.prompt) and memoryview(content.prompt)[0] == _LIST
    prompt.is_one_text = bool(text) and not is_never_cached and not is_list
    prompt.is_plain = (
        prompt.is_one_text and bool(prompt.chain) and not pictures and content.previous_response_id is None
    )
    return prompt


def _chain_of(text: bytes, model: str | None, cache_salt: object) -> array[int]:
    if len(text) < _FIRST_BLOCK:
        return _NOTHING
    previous = hash((model, cache_salt))  # vLLM shares nothing between salts
    hashes = []
    for block in _BLOCKS[: bisect_right(ENDS, len(text))]:
        previous = hash((previous, text[block]))  # keyed per process, so no client can construct a collision
        hashes.append(previous)
    return array("q", hashes)


def _messages_in(given: msgspec.Raw) -> Sequence[msgspec.Raw] | None:
    """The messages in the ``input`` of a response; ``None`` when it is something else, such as texts or tokens."""
    if not bytes(memoryview(given)[:_LIST_START_BYTES]).translate(None, b" \t\r\n").startswith(b"[{"):
        return None
    return read_list(given)


def _text_of(content: PromptContent, messages: Sequence[msgspec.Raw] | None) -> bytes:
    """The prompt's raw text, in the order in which models' templates put it.

    Closing brackets and quotes are left out: they move as soon as the conversation grows.
    """
    before = (content.tools, content.system, content.instructions)
    if messages:
        return b"".join((*before, *messages))
    return b"".join((*before, memoryview(content.prompt or content.input)[:-1]))


def _pictures_in(text: bytes) -> tuple[int, int]:
    """The number of pictures in ``text``, and how many bytes they take."""
    step = 1 + len(text) // (_SAMPLES + 1)
    for at in range(step, len(text) - _SAMPLE_BYTES, step):
        if _PICTURE_SAMPLE.match(text, at):
            break
    else:
        return 0, 0
    pictures = size = 0
    start = text.find(_PICTURE)
    while start >= 0:
        end = text.find(b'"', start)
        end = len(text) if end < 0 else end
        size += end - start
        pictures += 1
        start = text.find(_PICTURE, end)
    return pictures, size
