"""What of a request decides how long an engine works before its first token: how long its prompt is, and how it begins.

The strategy: one decode of the body, by which nothing but small members becomes a Python object. The prompt stays the
bytes that the client sent, and its beginnings are known by hashes of them: clients write the same conversation in the
same bytes again, with something added at its end. What another spelling would share is not seen; engines say what they
really had (:mod:`~.prefix_index`).
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections.abc import Sequence

import msgspec

from inference_engine_proxy_server.requests.conversation import Parts, key_of, parts_of
from inference_engine_proxy_server.requests.requested_model import requested_model
from inference_engine_proxy_server.requests.token_sizes import TokenSizes

__all__ = ["ENDS", "Prompt", "read_prompt"]

_FIRST_BLOCK = 512  # some 128 tokens: less than that is not worth another queue
_BLOCKS_A_SIZE = 16  # so that the end of a prompt that is not in a whole block is a sixteenth of it, or less
_SIZES = 8  # of blocks: the last end is at 2 MB, half a million tokens


def _block_ends() -> tuple[int, ...]:
    ends, end = [], 0
    for doubling in range(_SIZES):
        for _ in range(_BLOCKS_A_SIZE):
            end += _FIRST_BLOCK << doubling
            ends.append(end)
    return tuple(ends)


ENDS: Sequence[int] = _block_ends()
"""Where blocks end, in bytes of a prompt's text: the same in all prompts, and the longer the farther behind."""

_BLOCKS = tuple(map(slice, (0, *ENDS), ENDS))
_NOTHING = array("q")

_PLACED_BY = 512  # bytes of a prompt; simulated so, see docs/balancing.md

# A picture in a prompt is long in bytes and short in tokens: some 250 to 2,000 of them, by model and size.
_PICTURE_TOKENS = 1000
_PICTURE = b";base64,"
_SAMPLES = 8  # pictures are found by a look here and there: what is overlooked is small beside the rest
_SAMPLE_BYTES = 64
_PICTURE_SAMPLE = re.compile(rb"[A-Za-z0-9+/=]{%d}" % _SAMPLE_BYTES)

# In the order in which they count.
_SESSION_FIELDS = (b"x-session-id", b"x-claude-code-session-id", b"x-openwebui-chat-id", b"session-id")
_IDS = re.compile(rb"\n(%b):[ \t]*([^\r\n]{1,256}?)[ \t]*\r" % b"|".join(_SESSION_FIELDS), re.IGNORECASE)
_READ_ANEW = ("/embeddings", "/embedding", "/rerank", "/reranking", "/score", "/pooling", "/classify", "/tokenize")

_LIST = ord("[")
_LOOK_BYTES = 64  # blanks of a list's beginning included

_Small = str | int | float | bool | None  # nobody's mistake in a small member hides the others
_ABSENT = msgspec.Raw()


class _Members(msgspec.Struct, gc=False):
    model: _Small = None
    messages: list[msgspec.Raw] | None = None
    prompt: msgspec.Raw = _ABSENT
    input: msgspec.Raw = _ABSENT
    system: msgspec.Raw = _ABSENT
    tools: msgspec.Raw = _ABSENT
    instructions: msgspec.Raw = _ABSENT
    cache_salt: _Small = None
    max_tokens: _Small = None
    max_completion_tokens: _Small = None
    max_output_tokens: _Small = None
    n_predict: _Small = None
    prompt_cache_key: _Small = None
    previous_response_id: _Small = None
    stream: _Small = None


_decoder = msgspec.json.Decoder(_Members)
_items_decoder = msgspec.json.Decoder(list[msgspec.Raw])


class Prompt:
    """What routing may know of a request's prompt. It never changes.

    Attributes:
        model: what the request asks for, as :func:`~.request_traits.requested_model` finds it.
        size: bytes of its raw text: of the whole body, where no prompt is found in it.
        bytes_a_token: of its model, as far as replies have told.
        tokens: an estimate of its tokens.
        is_one_text: an engine reads it as one, and not each of its parts for itself (``input`` of embeddings), or
            something that is no text.
        is_plain: all its tokens are those of that text, which has a block at least: no pictures, nothing that stands
            elsewhere.
        chain: 64-bit hashes of how it begins: the one at ``i`` stands for its first ``ENDS[i]`` bytes and its model.
            Other processes have other ones. Empty: it is shorter than a block, or engines read it anew anyway.
        session: what its client says that it belongs to; ``None``: it does not say.
        answer_tokens: the most that it wants to have; ``None``: it sets no bound.
        is_streamed: it asks for its answer as a stream.
        start: the first bytes of its raw text.
        shared, opening, history: bytes of it that come before the first question, up to its end, and before the last
            message if there is one between these; 0: it has no such parts.
        turn, last_turn: hashes of it and of the prompt that its conversation had before; 0: there is none.
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

    def take_parts(self, parts: Parts, text: bytes) -> None:
        """Be a conversation of these parts; its ``chain`` is there."""
        self.shared, self.opening, self.history = parts.shared, parts.opening, parts.history
        self.turn = self._hash_up_to(parts.turn, text)
        self.last_turn = self._hash_up_to(parts.last_turn, text) if parts.last_turn else 0
        self._first_question = parts.first_question

    def _hash_up_to(self, end: int, text: bytes) -> int:
        blocks = bisect_right(ENDS, end)
        return hash((self.chain[blocks - 1], text[ENDS[blocks - 1] : end]) if blocks else text[:end])

    @property
    def shared_key(self) -> int:
        """64 bits by which all processes of all replicas know what comes before the first question."""
        return key_of(self.start)

    @property
    def conversation_key(self) -> int:
        """64 bits that all requests of a conversation share, in all processes of all replicas."""
        return key_of(self._first_question) if self._first_question and self.session is None else self.placement_key

    @property
    def placement_key(self) -> int:
        """64 bits by which all processes of all replicas place it alike: by its session, else by how it begins."""
        return key_of(self.start if self.session is None else self.session.encode())


def read_prompt(target: bytes, path: str, fields: bytes, body: bytes, token_sizes: TokenSizes) -> Prompt:
    """What ``body`` holds, however odd it is: an engine will say what is wrong with it.

    Args:
        target: path and query as sent.
        path: without the query.
        fields: lines of the header section, each ending in CRLF.
        body: any bytes.
        token_sizes: how many bytes a token has.
    """
    try:
        members = _decoder.decode(body) if body else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        members = None
    if members is None:
        model = requested_model(target, body)
        prompt = Prompt(model, len(body), token_sizes.of(model))
        prompt.start = body[:_PLACED_BY]
    else:
        prompt = _prompt_of(members, path, body, token_sizes)
    prompt.session = _session_in(fields) or prompt.session
    return prompt


def _prompt_of(members: _Members, path: str, body: bytes, token_sizes: TokenSizes) -> Prompt:
    model = members.model if isinstance(members.model, str) else None
    messages = members.messages or _messages_in(members.input)
    text = _text_of(members, messages)
    prompt = Prompt(model, len(text) or len(body), token_sizes.of(model))
    pictures, their_size = _pictures_in(text)
    if pictures:
        prompt.tokens = (len(text) - their_size) / prompt.bytes_a_token + pictures * _PICTURE_TOKENS
    is_read_anew = path.endswith(_READ_ANEW)
    if len(text) >= _FIRST_BLOCK and not is_read_anew:
        previous = hash((model, members.cache_salt))  # vLLM shares nothing between salts
        hashes = []
        for block in _BLOCKS[: bisect_right(ENDS, len(text))]:
            previous = hash((previous, text[block]))  # keyed, so that nobody can make two alike
            hashes.append(previous)
        prompt.chain = array("q", hashes)
    if messages and not is_read_anew:
        before = len(members.tools) + len(members.system) + len(members.instructions)
        parts = parts_of(messages, before, len(text))
        if parts is not None:
            prompt.take_parts(parts, text)
    prompt.start = text[:_PLACED_BY] or body[:_PLACED_BY]
    prompt.is_streamed = members.stream is True
    for bound in (members.max_completion_tokens, members.max_output_tokens, members.max_tokens, members.n_predict):
        if type(bound) is int and bound >= 0:
            prompt.answer_tokens = bound
            break
    if isinstance(members.prompt_cache_key, str):
        prompt.session = members.prompt_cache_key
    is_list = bool(members.prompt) and memoryview(members.prompt)[0] == _LIST
    prompt.is_one_text = bool(text) and not is_read_anew and not is_list
    prompt.is_plain = (
        prompt.is_one_text and bool(prompt.chain) and not pictures and members.previous_response_id is None
    )
    return prompt


def _messages_in(given: msgspec.Raw) -> list[msgspec.Raw] | None:
    """The messages that are the input of a response; ``None``: it is something else, such as texts or tokens."""
    if not bytes(memoryview(given)[:_LOOK_BYTES]).translate(None, b" \t\r\n").startswith(b"[{"):
        return None
    return _items_decoder.decode(given)


def _text_of(members: _Members, messages: Sequence[msgspec.Raw] | None) -> bytes:
    """The prompt's raw text, in the order in which models' templates have it.

    Without what ends there and stands elsewhere as soon as the conversation has grown: brackets, quotes.
    """
    before = (members.tools, members.system, members.instructions)
    if messages:
        return b"".join((*before, *messages))
    return b"".join((*before, memoryview(members.prompt or members.input)[:-1]))


def _pictures_in(text: bytes) -> tuple[int, int]:
    """How many there are, and how many bytes of ``text`` they take."""
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


def _session_in(fields: bytes) -> str | None:
    """What a header section says that its request belongs to; ``None``: it does not say."""
    named = {name.lower(): value.decode("latin-1") for name, value in _IDS.findall(b"\n" + fields)}
    return next((named[name] for name in _SESSION_FIELDS if name in named), None)
