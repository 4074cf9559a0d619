"""Writes a tiny Llama model with random weights as a GGUF file. Needs only the standard library.

Its text is nonsense, but for llama.cpp it is a real model: tokenizer, chat template, attention, sampling. It hardly
ever ends by itself, so a reply has exactly ``max_tokens`` tokens.

``python tests/tiny_gguf.py OUT.gguf [EMBEDDING LAYERS]``

Source: ggml docs/gguf.md (version 3); tensor names of the ``llama`` architecture in llama.cpp.
"""

from __future__ import annotations

import math
import random
import struct
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["ModelShape", "whole_words", "write_tiny_gguf"]

_UINT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 6, 7, 8, 9
_INT32 = 5
_ALIGNMENT = 32
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
_CONTROL_TOKENS = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
_FIRST_WORD_TOKEN = len(_CONTROL_TOKENS) + 256
_CONSONANTS, _VOWELS = "bdfghklmnprst", "aeiou"
_SHARPNESS = 2.0  # scale of queries and keys
_POOL_SIZE = 65_537  # prime, so that the rows of a tensor start at different offsets in the pool
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The size of the model, which determines its speed.

    Attributes:
        embedding: length of a token vector; a multiple of 64.
        layers: transformer blocks.
        context: context length in tokens that its metadata states.
        seed: the same seed gives the same bytes.
        only_words: it writes nothing but :func:`whole_words`, so that its text is read as the tokens that it wrote.
    """

    embedding: int = 64
    layers: int = 2
    context: int = 4096
    seed: int = 0
    only_words: bool = field(default=False, kw_only=True)

    @property
    def heads(self) -> int:
        return self.embedding // 32

    @property
    def feed_forward(self) -> int:
        return 2 * self.embedding


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    rows: int  # 1: a vector
    columns: int
    values: array[float]


def write_tiny_gguf(path: Path, shape: ModelShape | None = None) -> Path:
    """Write the model to ``path``; returns ``path``."""
    shape = shape or ModelShape()
    vocabulary = list(_vocabulary())
    metadata = _metadata(shape, vocabulary)
    written = len(whole_words()) if shape.only_words else len(vocabulary) - _FIRST_WORD_TOKEN
    tensors = list(_tensors(shape, len(vocabulary), len(vocabulary) - written))
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
        for key, value in metadata.items():
            file.write(_string(key) + value)
        offset = 0
        for tensor in tensors:
            dimensions = (tensor.columns,) if tensor.rows == 1 else (tensor.columns, tensor.rows)
            file.write(_string(tensor.name) + struct.pack("<I", len(dimensions)))
            file.write(struct.pack(f"<{len(dimensions)}Q", *dimensions) + struct.pack("<IQ", 0, offset))  # 0: F32
            offset += _padded(4 * len(tensor.values))
        file.write(bytes(_padded(file.tell()) - file.tell()))
        for tensor in tensors:
            file.write(tensor.values.tobytes())
            file.write(bytes(_padded(file.tell()) - file.tell()))
    return path


def whole_words() -> list[str]:
    """Words that are one token each, including the preceding blank, so that a text of them has a known length."""
    return [consonant + vowel + end for consonant in _CONSONANTS for vowel in _VOWELS for end in "lnrst"]


def _vocabulary() -> Iterator[tuple[str, int]]:
    """Tokens with their types: control tokens, the 256 bytes, single characters and short words."""
    yield _CONTROL_TOKENS[0], _UNKNOWN
    yield from ((token, _CONTROL) for token in _CONTROL_TOKENS[1:])
    yield from ((f"<0x{byte:02X}>", _BYTE) for byte in range(256))
    printable = "".join(chr(code) for code in range(33, 127))
    yield from ((character, _NORMAL) for character in "▁\n" + printable)
    # The tokenizer joins two tokens at a time, so each prefix of a word must be a token too.
    starts = [f"▁{consonant}" for consonant in _CONSONANTS]
    middles = [start + vowel for start in starts for vowel in _VOWELS]
    words = [f"▁{word}" for word in whole_words()]
    yield from ((token, _NORMAL) for token in starts + middles + words)


def _metadata(shape: ModelShape, vocabulary: list[tuple[str, int]]) -> dict[str, bytes]:
    tokens = [token for token, _ in vocabulary]
    # The tokenizer joins the pair with the highest score first, so longer tokens win.
    scores = [float(len(token)) if kind == _NORMAL else 0.0 for token, kind in vocabulary]
    return {
        "general.architecture": _typed_string("llama"),
        "general.name": _typed_string("tiny-random-llama"),
        "llama.context_length": _uint32(shape.context),
        "llama.embedding_length": _uint32(shape.embedding),
        "llama.block_count": _uint32(shape.layers),
        "llama.feed_forward_length": _uint32(shape.feed_forward),
        "llama.attention.head_count": _uint32(shape.heads),
        "llama.attention.head_count_kv": _uint32(shape.heads),
        "llama.attention.layer_norm_rms_epsilon": struct.pack("<If", _FLOAT32, 1e-5),
        "llama.rope.dimension_count": _uint32(shape.embedding // shape.heads),
        "llama.vocab_size": _uint32(len(tokens)),
        "tokenizer.ggml.model": _typed_string("llama"),
        "tokenizer.ggml.tokens": _array(_STRING, len(tokens), b"".join(map(_string, tokens))),
        "tokenizer.ggml.scores": _array(_FLOAT32, len(tokens), struct.pack(f"<{len(tokens)}f", *scores)),
        "tokenizer.ggml.token_type": _array(
            _INT32, len(tokens), struct.pack(f"<{len(tokens)}i", *(kind for _, kind in vocabulary))
        ),
        "tokenizer.ggml.unknown_token_id": _uint32(0),
        "tokenizer.ggml.bos_token_id": _uint32(1),
        "tokenizer.ggml.eos_token_id": _uint32(4),
        "tokenizer.ggml.add_bos_token": struct.pack("<I?", _BOOL, True),
        "tokenizer.ggml.add_space_prefix": struct.pack("<I?", _BOOL, False),
        "tokenizer.chat_template": _typed_string(_CHAT_TEMPLATE),
    }


class _Weights:
    """Random matrices, made of the same random numbers in different orders."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._pool = array("f", (self._random.gauss(0.0, 1.0) for _ in range(_POOL_SIZE)))

    def matrix(self, name: str, rows: int, columns: int, scale: float = 1.0) -> _Tensor:
        """Keeps the length of a random vector, times ``scale``."""
        size = rows * columns
        start = self._random.randrange(_POOL_SIZE)
        factor = scale / math.sqrt(columns)
        scaled = array("f", (factor * value for value in self._pool[start:] + self._pool[:start]))
        return _Tensor(f"{name}.weight", rows, columns, (scaled * (size // _POOL_SIZE + 1))[:size])

    def reading(self, name: str, rows: int, columns: int, scale: float = 1.0) -> _Tensor:
        """The same; does not read component 0."""
        tensor = self.matrix(name, rows, columns, scale)
        tensor.values[::columns] = array("f", bytes(4 * rows))
        return tensor

    def writing(self, name: str, rows: int, columns: int) -> _Tensor:
        """The same; adds nothing to component 0."""
        tensor = self.matrix(name, rows, columns)
        tensor.values[:columns] = array("f", bytes(4 * columns))
        return tensor


def _tensors(shape: ModelShape, tokens: int, first_written: int) -> Iterator[_Tensor]:
    """All weights; the first ``first_written`` tokens, at least the control and byte tokens, are hardly ever written.

    To make the end unlikely, component 0 of the running vector starts large and positive, no block reads it or adds to
    it, and the output weights of these tokens are zero except for a large negative weight on this
    component.

    The text depends on all tokens before it and hardly repeats itself, so that a test notices a token that is lost. For
    that, embeddings are as large as component 0, and attention is sharper than plain random weights would make it.
    """
    weights = _Weights(shape.seed)
    width, hidden = shape.embedding, shape.feed_forward
    embedding = weights.matrix("token_embd", tokens, width, math.sqrt(width))
    embedding.values[::width] = array("f", [math.sqrt(width)]) * tokens
    output = weights.reading("output", tokens, width)
    for token in range(first_written):
        output.values[token * width : (token + 1) * width] = array("f", [-50.0] + [0.0] * (width - 1))
    yield from (embedding, output, _ones("output_norm", width))
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        yield from (_ones(f"{block}.attn_norm", width), _ones(f"{block}.ffn_norm", width))
        yield from (weights.reading(f"{block}.attn_{part}", width, width, _SHARPNESS) for part in "qk")
        yield weights.reading(f"{block}.attn_v", width, width)
        yield from (weights.reading(f"{block}.ffn_{part}", hidden, width) for part in ("gate", "up"))
        yield weights.writing(f"{block}.attn_output", width, width)
        yield weights.writing(f"{block}.ffn_down", width, hidden)


def _ones(name: str, columns: int) -> _Tensor:
    return _Tensor(f"{name}.weight", 1, columns, array("f", [1.0]) * columns)


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _typed_string(text: str) -> bytes:
    return struct.pack("<I", _STRING) + _string(text)


def _uint32(value: int) -> bytes:
    return struct.pack("<II", _UINT32, value)


def _array(kind: int, length: int, content: bytes) -> bytes:
    return struct.pack("<IIQ", _ARRAY, kind, length) + content


if __name__ == "__main__":
    write_tiny_gguf(Path(sys.argv[1]), ModelShape(*map(int, sys.argv[2:])))
