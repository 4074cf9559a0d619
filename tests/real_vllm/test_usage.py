"""The usage ledger in front of real vLLM servers: exact sums, and streams as if nobody had asked for usage."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from inference_engine_proxy_server.usage.query import query_of, read_rows
from real_vllm.conftest import MODEL, Vllm, ask
from support.program import Proxy

PATHS = ("/v1/chat/completions", "/v1/completions")
COUNTERS = ("vllm:prompt_tokens_total{", "vllm:generation_tokens_total{")


def counted(engines: list[Vllm]) -> list[int]:
    """Tokens of prompts and answers that all engines have counted."""
    lines = [line for engine in engines for line in ask(f"{engine.url}/metrics").body.decode().splitlines()]
    return [int(sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))) for name in COUNTERS]


def question(path: str, number: int, *, stream: bool) -> dict[str, Any]:
    words = "hello " * (1 + number % 5)
    asked = {"prompt": words} if path == "/v1/completions" else {"messages": [{"role": "user", "content": words}]}
    return {"model": MODEL, "max_tokens": 3 + number % 7, "ignore_eos": True, "seed": number, "stream": stream, **asked}


def events(body: bytes) -> list[Any]:
    """The events of a stream without what differs between two equal requests."""
    data = [event.removeprefix(b"data: ") for event in body.split(b"\n\n") if event]
    return [one.decode() if one == b"[DONE]" else _comparable(json.loads(one)) for one in data]


def _comparable(event: dict[str, Any]) -> dict[str, Any]:
    # vLLM moves the fingerprint to the event that was taken out.
    return {name: value for name, value in event.items() if name not in ("id", "created", "system_fingerprint")}


@pytest.mark.parametrize("path", PATHS)
def test_a_stream_is_the_same_as_without_a_ledger(tmp_path: Path, engines: list[Vllm], path: str) -> None:
    asked = question(path, 3, stream=True)
    with Proxy(tmp_path, [engines[0].url], USAGE_FILE="usage.db") as proxy:
        through, direct = (ask(f"{url}{path}", asked).body for url in (proxy.url, engines[0].url))
    assert events(through) == events(direct)
    assert b'"usage"' not in through


def test_the_sums_equal_the_counters_of_the_engines(tmp_path: Path, engines: list[Vllm]) -> None:
    before = counted(engines)
    with Proxy(tmp_path, [engine.url for engine in engines], USAGE_FILE="usage.db") as proxy:
        for number in range(60):
            asked = question(PATHS[number % 2], number, stream=number % 3 > 0)
            if number % 6 == 1:
                asked["stream_options"] = {"include_usage": True}
            assert ask(f"{proxy.url}{PATHS[number % 2]}", asked).status == 200
    [row] = read_rows(tmp_path / "usage.db", query_of({"by": "model"}, time.time()))
    assert (row.groups, row.counts.requests, row.counts.estimated_requests) == ((MODEL,), 60, 0)
    after = counted(engines)
    assert [row.counts.input_tokens, row.counts.output_tokens] == [
        now - then for now, then in zip(after, before, strict=True)
    ]
