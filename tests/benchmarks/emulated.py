"""Emulated engines in the test process, and raw exchanges with them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

from emulation.engine import EmulatedEngine, Intake
from emulation.host import Hosted, HostPlan
from emulation.messages import CHAT_ML, Template
from simulation.batching import Speeds
from simulation.engine_spec import EngineSpec
from simulation.llamacpp_engine import LlamaCppSize
from simulation.vllm_engine import VllmSize
from support.ports import free_port

__all__ = ["FAST", "KINDS", "Emulated", "asked", "chunks", "emulated", "events", "raw", "shape", "spec", "words"]

KINDS = ("llama.cpp", "vllm")
FAST = Speeds(fixed=0.002, per_prompt_token=1e-6, per_sequence=1e-5, per_context_token=0.0, tokens_a_step=2048)


class Emulated:
    """One listening engine."""

    def __init__(self, hosted: Hosted, port: int) -> None:
        self.hosted = hosted
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    @property
    def engine(self) -> EmulatedEngine:
        return self.hosted.engines[0]


def spec(kind: str, speeds: Speeds = FAST, slots: int = 2) -> EngineSpec:
    """A small engine."""
    if kind == "vllm":
        return EngineSpec(speeds, vllm=VllmSize(places=slots, blocks=2000))
    return EngineSpec(speeds, llamacpp=LlamaCppSize(slots=slots, slot_context=8192))


@asynccontextmanager
async def emulated(
    kind: str, speeds: Speeds = FAST, template: Template = CHAT_ML, intake: Intake | None = None
) -> AsyncIterator[Emulated]:
    """An engine of the model "m" that listens."""
    port = free_port()
    hosted = Hosted(HostPlan([spec(kind, speeds)], [intake or Intake()], [port], "m", template, 4))
    await hosted.open()
    try:
        yield Emulated(hosted, port)
    finally:
        hosted.close()


def words(tokens: int, word: str = " bal") -> str:
    """A text of ``tokens`` tokens."""
    return word * tokens


def asked(*texts: str, tokens: int = 12, **fields: object) -> dict[str, Any]:
    """A chat completion whose messages alternate between user and assistant; the answer has ``tokens`` tokens."""
    messages = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
    return {"model": "m", "messages": messages, "seed": tokens, "max_tokens": tokens, **fields}


async def raw(url: str, method: str, path: str, body: object = None) -> bytes:
    """The bytes of a reply on a connection that could be kept alive, up to its end."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    content = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
    received = await reader.readuntil(b"\r\n\r\n")
    sized = next((line for line in received.lower().split(b"\r\n") if line.startswith(b"content-length:")), None)
    if sized is not None:
        received += await reader.readexactly(int(sized.partition(b":")[2]))
    else:
        received += await reader.readuntil(b"\r\n0\r\n\r\n")
    writer.close()
    return received


def chunks(body: bytes) -> Iterator[bytes]:
    """The chunks of a body in ``Transfer-Encoding: chunked``."""
    while body.strip():
        size, _, rest = body.lstrip(b"\r\n").partition(b"\r\n")
        length = int(size, 16)
        if not length:
            return
        yield rest[:length]
        body = rest[length + 2 :]


def events(payload: bytes) -> list[Any]:
    """The events in a part of a stream: JSON, or text that is none."""
    found = [event.removeprefix(b"data: ") for event in payload.split(b"\n\n") if event.strip()]
    return [event.decode() if event == b"[DONE]" else json.loads(event) for event in found]


def shape(value: Any) -> Any:
    """Members and types of a JSON value. Lists have the shape of their first item; ``None`` may stand for anything."""
    if isinstance(value, dict):
        return {name: shape(member) for name, member in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    if value is None or value == "[DONE]":
        return value
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__
