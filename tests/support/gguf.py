"""Writes GGUF files with random weights. Needs only the standard library.

Source: ggml docs/gguf.md (version 3).
"""

from __future__ import annotations

import math
import random
import struct
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "Tensor",
    "Weights",
    "flag",
    "float32",
    "float32s",
    "int32s",
    "ones",
    "text",
    "texts",
    "uint32",
    "write_gguf",
]

_UINT32, _INT32, _FLOAT32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9
_F32_TENSOR = 0
_ALIGNMENT = 32
_POOL_SIZE = 65_537  # prime, so that the rows of a tensor start at different offsets in the pool


@dataclass(frozen=True, slots=True)
class Tensor:
    """Weights.

    Attributes:
        shape: the length of a row first, as ggml does.
    """

    name: str
    shape: tuple[int, ...]
    values: array[float]


def write_gguf(path: Path, metadata: Mapping[str, bytes], tensors: Sequence[Tensor]) -> Path:
    """Write a file of ``metadata``, encoded by functions of this module, and ``tensors``; returns ``path``."""
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
        for key, value in metadata.items():
            file.write(_string(key) + value)
        offset = 0
        for tensor in tensors:
            count = len(tensor.shape)
            file.write(_string(tensor.name) + struct.pack(f"<I{count}Q", count, *tensor.shape))
            file.write(struct.pack("<IQ", _F32_TENSOR, offset))
            offset += _padded(4 * len(tensor.values))
        file.write(bytes(_padded(file.tell()) - file.tell()))
        for tensor in tensors:
            file.write(tensor.values.tobytes())
            file.write(bytes(_padded(file.tell()) - file.tell()))
    return path


class Weights:
    """Random matrices, made of the same random numbers in different orders."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._pool = array("f", (self._random.gauss(0.0, 1.0) for _ in range(_POOL_SIZE)))

    def matrix(self, name: str, rows: int, columns: int, scale: float = 1.0) -> Tensor:
        """Keeps the length of a random vector, times ``scale``."""
        return self.of_shape(f"{name}.weight", (columns, rows), scale / math.sqrt(columns))

    def of_shape(self, name: str, shape: tuple[int, ...], deviation: float) -> Tensor:
        """Random numbers with this standard deviation."""
        size = math.prod(shape)
        start = self._random.randrange(_POOL_SIZE)
        scaled = array("f", (deviation * value for value in self._pool[start:] + self._pool[:start]))
        return Tensor(name, shape, (scaled * (size // _POOL_SIZE + 1))[:size])


def ones(name: str, size: int) -> Tensor:
    """The weights of a norm that scales nothing."""
    return Tensor(f"{name}.weight", (size,), array("f", [1.0]) * size)


def text(value: str) -> bytes:
    return struct.pack("<I", _STRING) + _string(value)


def texts(values: Sequence[str]) -> bytes:
    return _array(_STRING, len(values), b"".join(map(_string, values)))


def uint32(value: int) -> bytes:
    return struct.pack("<II", _UINT32, value)


def float32(value: float) -> bytes:
    return struct.pack("<If", _FLOAT32, value)


def float32s(values: Iterable[float]) -> bytes:
    packed = array("f", values)
    return _array(_FLOAT32, len(packed), packed.tobytes())


def int32s(values: Iterable[int]) -> bytes:
    packed = array("i", values)
    return _array(_INT32, len(packed), packed.tobytes())


def flag(value: bool) -> bytes:
    return struct.pack("<I?", _BOOL, value)


def _padded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _string(value: str) -> bytes:
    encoded = value.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _array(kind: int, length: int, content: bytes) -> bytes:
    return struct.pack("<IIQ", _ARRAY, kind, length) + content
