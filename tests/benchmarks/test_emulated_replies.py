"""Emulated engines answer with the fields, members and events of real ones."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.emulated import KINDS, asked, chunks, emulated, events, raw, shape, words
from support.http_client import send
from support.llama_server import LlamaServer

RECORDED = Path(__file__).parents[1] / "recorded"
FOLDERS = {"llama.cpp": "llama-server", "vllm": "vllm"}
CHAT = "/v1/chat/completions"
WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True}}


def recorded(kind: str, name: str) -> bytes:
    return (RECORDED / FOLDERS[kind] / f"{name}.http").read_bytes()


def body_of(reply: bytes) -> bytes:
    return reply.partition(b"\r\n\r\n")[2]


def first_line_and_fields(reply: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """The status line, and the values of the fields that do not depend on content or time."""
    line, *fields = reply.partition(b"\r\n\r\n")[0].split(b"\r\n")
    pairs = [field.split(b":", 1) for field in fields]
    varying = (b"date", b"content-length", b"process-start-time-unix")
    return line, {name.lower(): value.strip() for name, value in pairs if name.lower() not in varying}


def differences(real: Any, emulated: Any, path: str = "") -> Iterator[str]:
    """Where two shapes differ; ``None`` stands for anything."""
    if real is None or emulated is None:
        return
    if isinstance(real, dict) and isinstance(emulated, dict):
        yield from (f"{path}.{name}" for name in real.keys() ^ emulated.keys())
        for name in real.keys() & emulated.keys():
            yield from differences(real[name], emulated[name], f"{path}.{name}")
    elif isinstance(real, list) and isinstance(emulated, list):
        for mine, theirs in zip(real, emulated, strict=False):
            yield from differences(mine, theirs, f"{path}[]")
    elif real != emulated:
        yield f"{path}: {real} {emulated}"


def stream_shape(reply: bytes) -> list[list[Any]]:
    """Shapes of the events in each chunk; equal consecutive chunks count once."""
    shapes: list[list[Any]] = []
    for chunk in chunks(body_of(reply)):
        found = [shape(event) for event in events(chunk)]
        if not shapes or found != shapes[-1]:
            shapes.append(found)
    return shapes


def without_cached_tokens(shapes: list[list[Any]]) -> list[list[Any]]:
    """vLLM was recorded without ``--enable-prompt-tokens-details``."""
    for one in (event for chunk in shapes for event in chunk if isinstance(event, dict) and "usage" in event):
        one["usage"].pop("prompt_tokens_details", None)
    return shapes


def families(page: bytes) -> dict[str, tuple[str, set[frozenset[str]]]]:
    """Type and sets of label names of each metric."""
    text = page.decode()
    types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    labels: dict[str, set[frozenset[str]]] = {}
    for name, found in re.findall(r"^([a-z_]+:[a-z_]+)(?:\{(.*)\})? \S+$", text, re.MULTILINE):
        labels.setdefault(name, set()).add(frozenset(re.findall(r'(\w+)="', found)))
    return {name: (types[name], found) for name, found in labels.items() if name in types}


@pytest.mark.parametrize("kind", KINDS)
async def test_an_answer_has_the_fields_and_members_of_a_real_one(kind: str) -> None:
    async with emulated(kind) as engine:
        reply = await raw(engine.url, "POST", CHAT, asked("hi"))
    real = recorded(kind, "chat-nonstream")

    assert first_line_and_fields(reply) == first_line_and_fields(real)
    assert not list(differences(shape(json.loads(body_of(real))), shape(json.loads(body_of(reply)))))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("fields", "name"), [({"stream": True}, "chat-stream-raw"), (WITH_USAGE, "chat-stream-usage-raw")]
)
async def test_a_stream_has_the_events_and_chunks_of_a_real_one(kind: str, fields: dict[str, Any], name: str) -> None:
    async with emulated(kind) as engine:
        reply = await raw(engine.url, "POST", CHAT, asked("hi", **fields))
    real = recorded(kind, name)

    assert first_line_and_fields(reply) == first_line_and_fields(real)
    assert without_cached_tokens(stream_shape(reply)) == without_cached_tokens(stream_shape(real))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_list_of_models_has_the_members_of_a_real_one(kind: str) -> None:
    async with emulated(kind) as engine:
        reply = await raw(engine.url, "GET", "/v1/models")
    real = recorded(kind, "v1-models")

    assert first_line_and_fields(reply) == first_line_and_fields(real)
    assert not list(differences(shape(json.loads(body_of(real))), shape(json.loads(body_of(reply)))))


@pytest.mark.parametrize(("kind", "name"), [("llama.cpp", "metrics-after"), ("vllm", "metrics")])
async def test_metrics_have_the_types_and_labels_of_real_ones(kind: str, name: str) -> None:
    async with emulated(kind) as engine:
        await raw(engine.url, "POST", CHAT, asked("hi"))
        reply = await raw(engine.url, "GET", "/metrics")
    real = recorded(kind, name)

    assert first_line_and_fields(reply) == first_line_and_fields(real)
    known, found = families(body_of(real)), families(body_of(reply))
    found.pop("vllm:cache_config_info", None)  # with three of its forty labels
    assert len(found) > 9
    assert {metric: known.get(metric) for metric in found} == found


@pytest.mark.parametrize(
    ("kind", "path", "name"), [("llama.cpp", "/health", "health-ready"), ("vllm", "/health", "health")]
)
async def test_health_is_that_of_a_real_engine(kind: str, path: str, name: str) -> None:
    async with emulated(kind) as engine:
        reply = await raw(engine.url, "GET", path)
    real = recorded(kind, name)

    assert (first_line_and_fields(reply), body_of(reply)) == (first_line_and_fields(real), body_of(real))


async def test_an_unknown_path_of_vllm_is_not_found() -> None:
    async with emulated("vllm") as engine:
        reply = await raw(engine.url, "GET", "/props")
    real = recorded("vllm", "err-404")

    assert (first_line_and_fields(reply), body_of(reply)) == (first_line_and_fields(real), body_of(real))


@pytest.mark.parametrize("path", ["/props", "/slots"])
async def test_a_page_of_llamacpp_has_members_of_a_real_servers_page(tiny_model: Path, path: str) -> None:
    with LlamaServer(tiny_model, "--slots", "2") as server:
        real = (await send(server.url, path)).json
    async with emulated("llama.cpp") as engine:
        page = (await send(engine.url, path)).json

    assert page
    missing = [difference for difference in differences(shape(real), shape(page)) if ":" in difference]
    assert not missing, "members of other types"
    assert set(page if isinstance(page, dict) else page[0]) <= set(real if isinstance(real, dict) else real[0])


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("llama.cpp", b"{", 400),
        ("vllm", b"{", 400),
        ("llama.cpp", {"messages": []}, 400),
        ("llama.cpp", asked("hi", model="other"), 200),
        ("vllm", asked("hi", model="other"), 404),
        ("llama.cpp", asked(words(9000)), 400),
        ("vllm", asked(words(41_000)), 400),
    ],
)
async def test_requests_that_a_real_engine_refuses_are_refused(kind: str, body: object, status: int) -> None:
    async with emulated(kind) as engine:
        reply = await send(engine.url, CHAT, body)

    assert reply.status == status
    assert ("error" in reply.json) == (status != 200)
    if status == 400:
        assert reply.json["error"]["code"] == 400


@pytest.mark.parametrize(("kind", "body"), [("llama.cpp", {"content": words(7)}), ("vllm", {"prompt": words(7)})])
async def test_a_text_has_a_token_for_each_four_bytes(kind: str, body: object) -> None:
    async with emulated(kind) as engine:
        reply = await send(engine.url, "/tokenize", body)

    assert len(reply.json["tokens"]) == 7


async def test_llamacpp_closes_a_connection_after_its_hundredth_request() -> None:
    async with emulated("llama.cpp") as engine:
        reader, writer = await asyncio.open_connection("127.0.0.1", engine.port)
        heads = []
        for _ in range(100):
            writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            heads.append(await reader.readuntil(b"\r\n\r\n"))
            await reader.readexactly(15)
        assert not await reader.read()
        writer.close()

    assert [b"Connection: close" in head for head in heads] == [False] * 99 + [True]


async def test_the_body_of_a_request_may_be_chunked() -> None:
    async with emulated("vllm") as engine:
        reader, writer = await asyncio.open_connection("127.0.0.1", engine.port)
        content = json.dumps(asked("hi")).encode()
        writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for part in (content[:10], content[10:], b""):
            writer.write(b"%x\r\n%b\r\n" % (len(part), part))
        line = await reader.readline()
        writer.close()

    assert line == b"HTTP/1.1 200 OK\r\n"
