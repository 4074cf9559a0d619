"""Writes a tiny encoder of pictures and sounds with random weights, for llama.cpp's ``--mmproj``.

Its model answers nonsense about what it sees and hears, but other nonsense about other pictures. Names are those of
LLaVA's (``mlp``) and Qwen2-Audio's (``qwen2a``) projectors in llama.cpp's tools/mtmd.
"""

from __future__ import annotations

import io
import random
import struct
import wave
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path

from support.gguf import Tensor, Weights, flag, float32, float32s, ones, text, uint32, write_gguf

__all__ = ["picture", "sound", "write_tiny_mmproj"]

_WIDTH, _HIDDEN, _HEADS = 32, 64, 2
_PICTURE, _PATCH = 32, 8  # pixels: of the side of a scaled picture, and of a part that becomes one token
_PATCHES = (_PICTURE // _PATCH) ** 2
_MEL_BINS = 80
_SOUND_STEPS = 1500  # of Whisper's 30 seconds
_SAMPLES_A_SECOND = 16_000


def write_tiny_mmproj(path: Path, embedding: int) -> Path:
    """Write the encoder for a model whose token vectors have the length ``embedding``; returns ``path``."""
    weights = Weights(1)
    return write_gguf(path, _metadata(embedding), [*_vision(weights, embedding), *_audio(weights, embedding)])


def picture(side: int, seed: int) -> bytes:
    """A square PNG of random pixels, which are not compressible: three bytes for each."""
    pixels = random.Random(seed)
    rows = b"".join(b"\0" + pixels.randbytes(3 * side) for _ in range(side))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)  # 8 bits, RGB
    parts = {b"IHDR": header, b"IDAT": zlib.compress(rows, 0), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        for name, content in parts.items()
    )


def sound(seconds: float, seed: int) -> bytes:
    """A WAV file with noise."""
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(_SAMPLES_A_SECOND)
        writer.writeframes(random.Random(seed).randbytes(2 * int(seconds * _SAMPLES_A_SECOND)))
    return file.getvalue()


def _metadata(embedding: int) -> dict[str, bytes]:
    metadata = {
        "general.architecture": text("clip"),
        "clip.use_gelu": flag(True),
        "clip.vision.projector_type": text("mlp"),
        "clip.vision.image_size": uint32(_PICTURE),
        "clip.vision.patch_size": uint32(_PATCH),
        "clip.vision.image_mean": float32s([0.5] * 3),
        "clip.vision.image_std": float32s([0.5] * 3),
        "clip.vision.block_count": uint32(2),  # the projector gets the output of the last but one
        "clip.audio.projector_type": text("qwen2a"),
        "clip.audio.num_mel_bins": uint32(_MEL_BINS),
        "clip.audio.block_count": uint32(1),
    }
    for kind in ("vision", "audio"):
        metadata |= {
            f"clip.has_{kind}_encoder": flag(True),
            f"clip.{kind}.embedding_length": uint32(_WIDTH),
            f"clip.{kind}.feed_forward_length": uint32(_HIDDEN),
            f"clip.{kind}.projection_dim": uint32(embedding),
            f"clip.{kind}.attention.head_count": uint32(_HEADS),
            f"clip.{kind}.attention.layer_norm_epsilon": float32(1e-5),
        }
    return metadata


def _vision(weights: Weights, embedding: int) -> Iterator[Tensor]:
    yield weights.of_shape("v.patch_embd.weight", (_PATCH, _PATCH, 3, _WIDTH), 1.0)
    yield weights.matrix("v.position_embd", _PATCHES + 1, _WIDTH)
    yield Tensor("v.class_embd", (_WIDTH,), _zeros(_WIDTH))
    yield from _norm("v.pre_ln")
    for layer in range(2):
        yield from _block(weights, f"v.blk.{layer}", "qkv")
    for layer, columns in ((0, _WIDTH), (2, embedding)):
        yield from (weights.matrix(f"mm.{layer}", embedding, columns), _bias(f"mm.{layer}", embedding))


def _audio(weights: Weights, embedding: int) -> Iterator[Tensor]:
    for layer, inputs in ((1, _MEL_BINS), (2, _WIDTH)):
        yield weights.of_shape(f"a.conv1d.{layer}.weight", (3, inputs, _WIDTH), 1.0)
        yield Tensor(f"a.conv1d.{layer}.bias", (1, _WIDTH), _zeros(_WIDTH))
    yield weights.matrix("a.position_embd", _SOUND_STEPS, _WIDTH)
    yield from _block(weights, "a.blk.0", "qv")  # Whisper's keys have no bias
    yield from _norm("a.post_ln")
    yield from (weights.matrix("mm.a.fc", embedding, _WIDTH), _bias("mm.a.fc", embedding))


def _block(weights: Weights, block: str, biased: str) -> Iterator[Tensor]:
    yield from (weights.matrix(f"{block}.attn_{part}", _WIDTH, _WIDTH) for part in ("q", "k", "v", "out"))
    yield from (_bias(f"{block}.attn_{part}", _WIDTH) for part in (*biased, "out"))
    yield from (*_norm(f"{block}.ln1"), *_norm(f"{block}.ln2"))
    yield from (weights.matrix(f"{block}.ffn_up", _HIDDEN, _WIDTH), _bias(f"{block}.ffn_up", _HIDDEN))
    yield from (weights.matrix(f"{block}.ffn_down", _WIDTH, _HIDDEN), _bias(f"{block}.ffn_down", _WIDTH))


def _norm(name: str) -> tuple[Tensor, Tensor]:
    return ones(name, _WIDTH), _bias(name, _WIDTH)


def _bias(name: str, size: int) -> Tensor:
    return Tensor(f"{name}.bias", (size,), _zeros(size))


def _zeros(size: int) -> array[float]:
    return array("f", [0.0]) * size
