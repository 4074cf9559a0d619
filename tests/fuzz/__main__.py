"""Fuzzes the targets, guided by code coverage. Run by `scripts/test.sh fuzz`.

Usage: python -m fuzz CORPUS [libFuzzer's options]
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

atheris: Any = importlib.import_module("atheris")  # installed in a separate environment that mypy does not see

with atheris.instrument_imports(include=["inference_engine_proxy_server"]):
    from fuzz.targets import BETWEEN, check, regressions, seeds
    from support.fakes.memory import HurryingLoop
    from support.fakes.messages import TOKENS


def main(corpus: Path, options: list[str]) -> None:
    corpus.mkdir(parents=True, exist_ok=True)
    for name, data in seeds().items():
        (corpus / f"seed-{name}").write_bytes(data)
    for name, data in regressions().items():
        (corpus / name).write_bytes(data)
    words = corpus.with_name("dictionary")
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in [*TOKENS, BETWEEN] if word))
    loop = HurryingLoop()
    atheris.Setup([sys.argv[0], str(corpus), f"-dict={words}", *options], lambda data: check(loop, data))
    atheris.Fuzz()


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
