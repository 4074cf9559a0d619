"""Reads what determines the time to the first token: how long a prompt is, and how it begins.

The body is decoded once, and only small members become Python objects. The prompt is kept as the bytes that the client
sent, and its beginnings are identified by the hashes of their blocks: clients repeat a conversation in the same bytes
and append to it. A prefix that is shared, but encoded in other bytes, is not recognized; engines report what they
actually reused (:mod:`~.prefix_index`).

All loops over a long prompt run in C.
"""

from __future__ import annotations

import re
import string
from array import array
from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from struct import Struct

import msgspec

from inference_engine_proxy_server.requests.content import (
    PromptContent,
    RequestContent,
    read_content_with_prompt,
    read_list,
)
from inference_engine_proxy_server.requests.conversation import Parts, key_of, parts_of
from inference_engine_proxy_server.requests.forms import is_form
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

_NOTHING = array("q")
_HASH_BYTES = 8

_PLACEMENT_BYTES = 512  # of a prompt's start; chosen by simulation, see docs/balancing.md

# A picture or sound is long in bytes and short in tokens: some 250 to 2,000 of them, by model and size.
_FILE_TOKENS = 1000
_SAMPLES = 384  # bytes of the text that are tested for base64: a file small enough to be missed hardly counts
_IN_A_ROW = b"+" * 36  # of these, all of base64: a tenth of the text
_BASE64 = f"{string.ascii_letters}{string.digits}+/=".encode()
_TO_PLUS = bytes.maketrans(_BASE64, b"+" * len(_BASE64))
# A data URL, and the member that has pictures and documents in Anthropic's API, and sounds in OpenAI's.
_FILE_STARTS = (b";base64,", b'"data"')
_FILE_START = re.compile(rb';base64,|"data"\s*+:\s*+"(?=[A-Za-z0-9+/=]{64})')

# Engines reuse no prefix for these.
_NEVER_CACHED = ("/embeddings", "/embedding", "/rerank", "/reranking", "/score", "/pooling", "/classify", "/tokenize")

_LIST = ord("[")
_LIST_START_BYTES = 64  # searched for the first item of a list, blanks included


class Prompt(msgspec.Struct, eq=False, gc=False):
    """The facts about a request's prompt that routing uses. Immutable once :func:`read_prompt` has returned it.

    It has more than 15 attributes: policies read them one by one, and one object per prompt is the cheapest.

    Attributes:
        model: the model as found by :func:`~.content.read_content`.
        size: bytes of the prompt's raw text; of the whole body when no prompt is found in it.
        bytes_a_token: bytes per token of its model, learned from replies.
        tokens: estimated tokens.
        is_one_text: the engine reads it as one text. False for a list of independent texts (``input`` of embeddings),
            and when no prompt is found.
        is_plain: all its tokens come from that text, which is at least one block long: no files, no stored history.
        chain: 64-bit hashes of its whole blocks, which end at ``ENDS``; the first one also covers the model. The first
            ``n`` hashes together stand for the first ``ENDS[n - 1]`` bytes. They differ between processes. Empty when
            the text is shorter than a block, or engines cache nothing of it.
        session: the session that the client names; ``None`` when it names none.
        answer_tokens: the most tokens that the answer may have; ``None`` when the request sets no limit.
        is_streamed: the request asks for a stream.
        start: the first bytes of its raw text.
        shared, opening, history: bytes before the first question, up to its end, and before the last message if that is
            another one; 0 when there is no such part.
        turn, last_turn: hashes of it and of the previous prompt in its conversation; 0 when there is none.
    """

    model: str | None
    size: int
    bytes_a_token: float
    tokens: float = 0.0
    is_one_text: bool = False
    is_plain: bool = False
    chain: array[int] = _NOTHING
    session: str | None = None
    answer_tokens: int | None = None
    is_streamed: bool = False
    start: bytes = b""
    shared: int = 0
    opening: int = 0
    history: int = 0
    turn: int = 0
    last_turn: int = 0
    _first_question: bytes = b""

    def __post_init__(self) -> None:
        """Estimate the tokens."""
        self.tokens = self.size / self.bytes_a_token

    def __repr__(self) -> str:
        return f"Prompt(model={self.model!r}, size={self.size}, tokens={self.tokens:.0f})"

    def set_parts(self, parts: Parts, text: bytes) -> None:
        """Take over the parts of a conversation; ``chain`` must be set already."""
        self.shared, self.opening, self.history = parts.shared, parts.opening, parts.history
        chain = self.chain.tobytes()
        self.turn = _hash_up_to(parts.turn, chain, text)
        self.last_turn = _hash_up_to(parts.last_turn, chain, text) if parts.last_turn else 0
        self._first_question = parts.first_question

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


def read_prompt(
    target: bytes,
    path: str,
    fields: bytes,
    body: bytes,
    token_sizes: TokenSizes,
    content: RequestContent | None = None,
) -> Prompt:
    """The prompt in ``body``. A malformed body is no error here: the engine reports it.

    Args:
        target: path and query as sent.
        path: without the query.
        fields: header lines, each ending in CRLF.
        body: any bytes.
        token_sizes: estimates bytes per token.
        content: result of :func:`~.content.read_content_with_prompt`; ``None`` if the body has not been decoded.
    """
    if content is None:
        content = read_content_with_prompt(target, body, fields)
    if isinstance(content, PromptContent):
        prompt = _prompt_of(content, path, body, token_sizes)
    else:
        model = content.model
        prompt = Prompt(model, len(body), token_sizes.of(model), start=body[:_PLACEMENT_BYTES])
        if is_form(fields):
            prompt.tokens = _FILE_TOKENS
    prompt.session = session_id(fields) or prompt.session
    return prompt


def _prompt_of(content: PromptContent, path: str, body: bytes, token_sizes: TokenSizes) -> Prompt:
    model = content.model
    messages = content.messages or _messages_in(content.input)
    text = _text_of(content, messages)
    is_cached = not path.endswith(_NEVER_CACHED)
    is_list = bool(content.prompt) and memoryview(content.prompt)[0] == _LIST
    session = content.prompt_cache_key
    prompt = Prompt(
        model,
        len(text) or len(body),
        token_sizes.of(model),
        is_one_text=bool(text) and is_cached and not is_list,
        chain=_chain_of(text, model, content.cache_salt) if is_cached else _NOTHING,
        session=session if isinstance(session, str) else None,
        answer_tokens=content.answer_tokens,
        is_streamed=content.is_streamed,
        start=text[:_PLACEMENT_BYTES] or body[:_PLACEMENT_BYTES],
    )
    files = _files_in(text)
    if files:
        prompt.tokens = (len(text) - sum(files)) / prompt.bytes_a_token + len(files) * _FILE_TOKENS
    if messages and is_cached:
        before = len(content.tools) + len(content.system) + len(content.instructions)
        parts = parts_of(text, messages, before)
        if parts is not None:
            prompt.set_parts(parts, text)
    prompt.is_plain = prompt.is_one_text and bool(prompt.chain) and not files and content.previous_response_id is None
    return prompt


def _chain_of(text: bytes, model: str | None, cache_salt: object) -> array[int]:
    count = bisect_right(ENDS, len(text))
    if not count:
        return _NOTHING
    first, *others = _splitter(count).unpack_from(text)
    # Hashes of bytes are keyed per process, so no client can construct a collision. vLLM shares nothing between salts.
    return array("q", _packer(count).pack(hash((model, cache_salt, first)), *map(hash, others)))


@cache
def _splitter(blocks: int) -> Struct:
    """Splits the first ``blocks`` blocks off a text, faster than slices do."""
    return Struct("".join(f"{end - begin}s" for begin, end in zip((0, *ENDS), ENDS[:blocks], strict=False)))


@cache
def _packer(hashes: int) -> Struct:
    """Packs ``hashes`` hashes, faster than an array does."""
    return Struct(f"{hashes}q")


def _hash_up_to(end: int, chain: bytes, text: bytes) -> int:
    blocks = bisect_right(ENDS, end)
    return hash((chain[: blocks * _HASH_BYTES], text[ENDS[blocks - 1] : end]) if blocks else text[:end])


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


def _files_in(text: bytes) -> Sequence[int]:
    """The length of each picture, sound or document in ``text``, as base64."""
    if text[:: 1 + len(text) // _SAMPLES].translate(_TO_PLUS).find(_IN_A_ROW) < 0:
        return ()
    lengths = []
    for start in _FILE_STARTS:
        at = text.find(start)
        while at >= 0:
            found = _FILE_START.match(text, at)
            end = at + 1
            if found is not None:
                end = text.find(b'"', found.end())
                end = len(text) if end < 0 else end
                lengths.append(end - at)
            at = text.find(start, end)
    return lengths
