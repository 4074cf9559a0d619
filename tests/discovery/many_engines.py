"""An engine that answers at many addresses, in its own process, so that its work does not count as the proxy's.

::

    python -m discovery.many_engines KIND PORT ADDRESSES MODELS

Listens on PORT of 127.0.1.1, 127.0.1.2, ... and answers polls as an idle server of KIND does, which is
``llamacpp`` or ``vllm``. The server at the nth address has the nth of MODELS models; of kind ``vllm``, all models. Runs
until it is terminated.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from functools import partial

__all__ = ["addresses", "models"]

_METRICS = {
    "llamacpp": "".join(
        f"# HELP llamacpp:{name} Help.\n# TYPE llamacpp:{name} {kind}\nllamacpp:{name} 0\n"
        for name, kind in [
            ("prompt_tokens_total", "counter"), ("prompt_seconds_total", "counter"),
            ("tokens_predicted_total", "counter"), ("tokens_predicted_seconds_total", "counter"),
            ("n_decode_total", "counter"), ("n_tokens_max", "counter"), ("n_busy_slots_per_decode", "counter"),
            ("prompt_tokens_seconds", "gauge"), ("predicted_tokens_seconds", "gauge"),
            ("requests_processing", "gauge"), ("requests_deferred", "gauge"),
        ]
    ),
    "vllm": (
        "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{engine=\"0\",model_name=\"m\"} 0\n"
        "# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{engine=\"0\",model_name=\"m\"} 0\n"
    ),
}  # fmt: skip


def addresses(count: int) -> list[str]:
    """The addresses of ``count`` servers."""
    return [f"127.0.{1 + number // 200}.{1 + number % 200}" for number in range(count)]


def models(count: int) -> list[str]:
    """The names of ``count`` models."""
    return [f"org/model-{number}-instruct" for number in range(count)]


class _Server(asyncio.Protocol):
    """One connection; ``pages``: whole replies by request line."""

    def __init__(self, pages: dict[bytes, bytes]) -> None:
        self._pages = pages
        self._missing = _reply(b"{}", 404)
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        path = data.split(b" ", 2)[1]
        self._transport.write(self._pages.get(path, self._missing))


def _reply(body: bytes, status: int = 200) -> bytes:
    head = f"HTTP/1.1 {status} OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _pages(kind: str, served: Sequence[str]) -> dict[bytes, bytes]:
    meta = {"vocab_type": 2, "n_vocab": 151936, "n_ctx_train": 40960, "n_embd": 4096, "n_params": 8e9, "size": 5e9}
    data = [{"id": name, "object": "model", "created": 1, "owned_by": kind, "meta": meta} for name in served]
    return {
        b"/health": _reply(b'{"status":"ok"}'),
        b"/v1/models": _reply(json.dumps({"object": "list", "data": data}).encode()),
        b"/metrics": _reply(_METRICS[kind].encode()),
        b"/version": _reply(b'{"version":"0.11.0"}'),
        b"/props": _reply(json.dumps({"total_slots": 4, "build_info": "b11549", "chat_template": "x" * 4000}).encode()),
        b"/apply-template": _reply(b'{"prompt": "<user>a<assistant>begun"}'),
    }


async def _main(kind: str, port: int, count: int, model_count: int) -> None:
    names, loop = models(model_count), asyncio.get_running_loop()
    for number, address in enumerate(addresses(count)):
        served = names if kind == "vllm" else [names[number % model_count]]
        pages = _pages(kind, served)
        await loop.create_server(partial(_Server, pages), address, port, backlog=64)
    sys.stdout.write("listening\n")
    sys.stdout.flush()
    await loop.create_future()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], *map(int, sys.argv[2:5])))
