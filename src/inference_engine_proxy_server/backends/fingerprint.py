"""What tells the replicas of one model apart, as engines report it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, NamedTuple

__all__ = ["Fingerprint", "Weights", "digest", "source_of", "template_hash", "weights_of"]

_SHOWN_DIGITS = 12  # of hashes; people compare them


class Weights(NamedTuple):
    """The size of a model, which differs between models, and between quantizations of one model."""

    parameters: int
    size_bytes: int
    vocabulary: int
    embedding: int

    def __str__(self) -> str:
        return f"{self.parameters:,} parameters ({self.size_bytes:,} bytes)"


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The facts that tell one replica of a model from another; ``None`` means unknown.

    Attributes:
        weights: their size.
        source: name of the file, folder or repository that the engine loaded.
        template: hash of the chat template.
        tokenizer: hash of the tokens of a fixed text. Engines of different kinds split some texts differently, even
            with the tokenizer of the same model, so it can be compared within a kind only.
        slots: requests that the engine was started to process at a time.
        version: of the engine, as it names it.
        engine: the kind.
    """

    weights: Weights | None = None
    source: str | None = None
    template: str | None = None
    tokenizer: str | None = None
    slots: int | None = None
    version: str | None = None
    engine: str = ""

    def is_same_model(self, other: Fingerprint) -> bool:
        """Whether both read a prompt alike and have the same weights, as far as both are known."""
        pairs = (
            (self.weights, other.weights),
            (self.source, other.source),
            (self.template, other.template),
            (self.tokenizer, other.tokenizer if self.engine == other.engine else None),
        )
        return all(ours == theirs or ours is None or theirs is None for ours, theirs in pairs)


def weights_of(entry: Mapping[str, Any]) -> Weights | None:
    """The weights in an entry of llama.cpp's list of models; ``None`` if it does not report all figures."""
    meta = entry.get("meta")
    if not isinstance(meta, Mapping):
        return None
    figures = [meta.get(name) for name in ("n_params", "size", "n_vocab", "n_embd")]
    known = [figure for figure in figures if type(figure) is int]
    return Weights(*known) if len(known) == len(figures) else None


def source_of(entry: Mapping[str, Any]) -> str | None:
    """What vLLM loaded for an entry of its list of models, without folders; ``None`` for a LoRA adapter."""
    root = entry.get("root")
    if not isinstance(root, str) or not root or entry.get("parent") is not None:
        return None
    return PurePosixPath(root).name or None


def template_hash(template: str | None) -> str | None:
    """A hash of a chat template."""
    return None if template is None else digest(template.encode())


def digest(content: bytes) -> str:
    """A hash that people can compare."""
    return hashlib.sha256(content).hexdigest()[:_SHOWN_DIGITS]
