"""Writes a tiny language model with random weights as a GGUF file. Needs only the standard library.

Its text is nonsense, but for llama.cpp it is a real model: tokenizer, chat template, attention, sampling. It hardly
ever ends by itself, so a reply has exactly ``max_tokens`` tokens.

``cd tests; python -m support.tiny_gguf OUT.gguf [EMBEDDING LAYERS]``

Source: tensor names of the ``llama`` and ``qwen3`` architectures in llama.cpp.
"""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from support.gguf import Tensor, Weights, flag, float32, float32s, int32s, ones, text, texts, uint32, write_gguf

__all__ = ["ModelShape", "whole_words", "write_tiny_gguf"]

_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
_CONTROL_TOKENS = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
_INFILL_TOKENS = {"pre": "<|fim_prefix|>", "suf": "<|fim_suffix|>", "mid": "<|fim_middle|>"}
_RANKS = ("yes", "no")  # as Qwen3-Reranker has them; the score is the probability of the first
_CONSONANTS, _VOWELS = "bdfghklmnprst", "aeiou"
_SHARPNESS = 2.0  # scale of queries and keys
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
        infills: it has the tokens that ``/infill`` needs.
        ranks: it can also score documents, like Qwen3-Reranker.
    """

    embedding: int = 64
    layers: int = 2
    context: int = 4096
    seed: int = 0
    only_words: bool = field(default=False, kw_only=True)
    infills: bool = field(default=False, kw_only=True)
    ranks: bool = field(default=False, kw_only=True)

    @property
    def architecture(self) -> str:
        return "qwen3" if self.ranks else "llama"

    @property
    def control_tokens(self) -> tuple[str, ...]:
        return (*_CONTROL_TOKENS, *(_INFILL_TOKENS.values() if self.infills else ()))

    @property
    def heads(self) -> int:
        return self.embedding // 32

    @property
    def head_size(self) -> int:
        return self.embedding // self.heads

    @property
    def feed_forward(self) -> int:
        return 2 * self.embedding


def write_tiny_gguf(path: Path, shape: ModelShape | None = None) -> Path:
    """Write the model to ``path``; returns ``path``."""
    shape = shape or ModelShape()
    vocabulary = list(_vocabulary(shape))
    metadata = _metadata(shape, vocabulary)
    written = len(whole_words()) if shape.only_words else len(vocabulary) - len(shape.control_tokens) - 256
    tensors = list(_tensors(shape, len(vocabulary), len(vocabulary) - written))
    return write_gguf(path, metadata, tensors)


def whole_words() -> list[str]:
    """Words that are one token each, including the preceding blank, so that a text of them has a known length."""
    return [consonant + vowel + end for consonant in _CONSONANTS for vowel in _VOWELS for end in "lnrst"]


def _vocabulary(shape: ModelShape) -> Iterator[tuple[str, int]]:
    """Tokens with their types: control tokens, the 256 bytes, single characters and short words."""
    unknown, *others = shape.control_tokens
    yield unknown, _UNKNOWN
    yield from ((token, _CONTROL) for token in others)
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
    of_architecture = {
        "context_length": uint32(shape.context),
        "embedding_length": uint32(shape.embedding),
        "block_count": uint32(shape.layers),
        "feed_forward_length": uint32(shape.feed_forward),
        "attention.head_count": uint32(shape.heads),
        "attention.head_count_kv": uint32(shape.heads),
        "attention.layer_norm_rms_epsilon": float32(1e-5),
        "rope.dimension_count": uint32(shape.head_size),
        "vocab_size": uint32(len(tokens)),
    }
    if shape.ranks:
        of_architecture["classifier.output_labels"] = texts(_RANKS)
    infill_tokens = _INFILL_TOKENS if shape.infills else {}
    return {
        "general.architecture": text(shape.architecture),
        "general.name": text(f"tiny-random-{shape.architecture}"),
        **{f"{shape.architecture}.{key}": value for key, value in of_architecture.items()},
        "tokenizer.ggml.model": text("llama"),
        "tokenizer.ggml.tokens": texts(tokens),
        "tokenizer.ggml.scores": float32s(scores),
        "tokenizer.ggml.token_type": int32s(kind for _, kind in vocabulary),
        "tokenizer.ggml.unknown_token_id": uint32(0),
        "tokenizer.ggml.bos_token_id": uint32(1),
        "tokenizer.ggml.eos_token_id": uint32(4),
        "tokenizer.ggml.add_bos_token": flag(True),
        "tokenizer.ggml.add_space_prefix": flag(False),
        **{f"tokenizer.ggml.fim_{name}_token_id": uint32(tokens.index(t)) for name, t in infill_tokens.items()},
        "tokenizer.chat_template": text(_CHAT_TEMPLATE),
    }


class _BlockWeights(Weights):
    """Matrices of blocks that leave component 0 of the running vector alone."""

    def reading(self, name: str, rows: int, columns: int, scale: float = 1.0) -> Tensor:
        """Like :meth:`matrix`; does not read component 0."""
        tensor = self.matrix(name, rows, columns, scale)
        tensor.values[::columns] = array("f", bytes(4 * rows))
        return tensor

    def writing(self, name: str, rows: int, columns: int) -> Tensor:
        """Like :meth:`matrix`; adds nothing to component 0."""
        tensor = self.matrix(name, rows, columns)
        tensor.values[:columns] = array("f", bytes(4 * columns))
        return tensor


def _tensors(shape: ModelShape, tokens: int, first_written: int) -> Iterator[Tensor]:
    """All weights; the first ``first_written`` tokens, at least the control and byte tokens, are hardly ever written.

    To make the end unlikely, component 0 of the running vector starts large and positive, no block reads it or adds to
    it, and the output weights of these tokens are zero except for a large negative weight on this
    component.

    The text depends on all tokens before it and hardly repeats itself, so that a test notices a token that is lost. For
    that, embeddings are as large as component 0, and attention is sharper than plain random weights would make it.
    """
    weights = _BlockWeights(shape.seed)
    width, hidden = shape.embedding, shape.feed_forward
    embedding = weights.matrix("token_embd", tokens, width, math.sqrt(width))
    embedding.values[::width] = array("f", [math.sqrt(width)]) * tokens
    output = weights.reading("output", tokens, width)
    for token in range(first_written):
        output.values[token * width : (token + 1) * width] = array("f", [-50.0] + [0.0] * (width - 1))
    yield from (embedding, output, ones("output_norm", width))
    if shape.ranks:
        yield weights.matrix("cls.output", len(_RANKS), width)
    for layer in range(shape.layers):
        block = f"blk.{layer}"
        yield from (ones(f"{block}.attn_norm", width), ones(f"{block}.ffn_norm", width))
        if shape.ranks:
            yield from (ones(f"{block}.attn_{part}_norm", shape.head_size) for part in "qk")
        yield from (weights.reading(f"{block}.attn_{part}", width, width, _SHARPNESS) for part in "qk")
        yield weights.reading(f"{block}.attn_v", width, width)
        yield from (weights.reading(f"{block}.ffn_{part}", hidden, width) for part in ("gate", "up"))
        yield weights.writing(f"{block}.attn_output", width, width)
        yield weights.writing(f"{block}.ffn_down", width, hidden)


if __name__ == "__main__":
    write_tiny_gguf(Path(sys.argv[1]), ModelShape(*map(int, sys.argv[2:])))
