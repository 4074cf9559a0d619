"""Recorded replies of real engines: llama.cpp builds 11434 and 11549 (xllamacpp), vLLM 0.32.0.

``answers`` imitates a backend's ``get`` with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from inference_engine_proxy_server.backends.base import Get, Reply

__all__ = ["answering", "recorded"]


def recorded(engine: str, name: str) -> Reply:
    """The reply in ``<engine>/<name>.http``."""
    head, _, body = (Path(__file__).parent / engine / f"{name}.http").read_bytes().partition(b"\r\n\r\n")
    status_line, _, fields = head.partition(b"\r\n")
    return Reply(int(status_line.split()[1]), body, fields)


def answering(answers: Mapping[str, Reply | Exception], asked: list[str] | None = None) -> Get:
    """A ``get`` that returns or raises the given answer of each path; other paths get 404.

    Args:
        answers: by path; looked up at every call, so a test can change them.
        asked: records the requested paths in order.
    """

    async def get(path: str, json_body: bytes | None = None) -> Reply:
        del json_body
        if asked is not None:
            asked.append(path)
        answer = answers.get(path, Reply(404, b""))
        if isinstance(answer, Exception):
            raise answer
        return answer

    return get
