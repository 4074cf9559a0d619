"""The APIs of a llama.cpp server that the proxy forwards, and what is comparable in two replies to one request."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from support.http_client import Reply, send
from support.program import Proxy
from support.running_proxy import Addressed
from support.waiting import eventually

__all__ = [
    "APIS", "FORM", "RANKS", "VECTORS", "WORDS", "Api", "comparable", "counts", "form", "start_proxy", "tokens_of",
]  # fmt: skip

FORM = {"Content-Type": "multipart/form-data; boundary=--b"}
"""The header of :func:`form`."""

_ADMIN = "key-of-the-operators"
WORDS, VECTORS, RANKS = "words", "vectors", "ranks"
"""Models: one writes text, one makes embeddings, one scores documents."""

_MESSAGES = {"messages": [{"role": "user", "content": "kin sol mer"}]}
_FIXED = {"temperature": 0, "seed": 1}
_DOCUMENTS = {"query": "kin sol", "documents": ["mer", "kin sol mer", "bat"]}
# Ids and times, and what depends on the slot of the engine and on its cache.
_CHANGING = {
    "id", "item_id", "id_slot", "created", "created_at", "completed_at", "timings", "cached_tokens", "tokens_cached",
    "prompt_tokens_details", "input_tokens_details",
}  # fmt: skip


@dataclass(frozen=True)
class Api:
    """One path, and a request for it.

    Attributes:
        model: the model that serves it.
        streams: whether it has a stream, too.
        is_repeatable: whether the proxy sends it again after a backend broke.
        is_light: whether it takes no slot of the engine and is not counted.
        wrong: a body that the engine answers with an error.
    """

    path: str
    body: Mapping[str, Any]
    model: str = WORDS
    streams: bool = field(default=False, kw_only=True)
    is_repeatable: bool = field(default=True, kw_only=True)
    is_light: bool = field(default=False, kw_only=True)
    wrong: Mapping[str, Any] | None = field(default=None, kw_only=True)

    def request(self, model: str, *, stream: bool = False) -> dict[str, Any]:
        """The body of a request that names ``model``."""
        return {"model": model, **self.body} | ({"stream": True} if stream else {})


APIS = (
    Api("/v1/chat/completions", {**_MESSAGES, **_FIXED, "max_tokens": 6}, streams=True, wrong={"messages": 1}),
    Api("/v1/completions", {"prompt": "kin sol", **_FIXED, "max_tokens": 6}, streams=True, wrong={"prompt": {}}),
    Api("/v1/responses", {"input": "kin sol", **_FIXED, "max_output_tokens": 6}, streams=True, is_repeatable=False,
        wrong={"input": 1}),
    Api("/v1/messages", {**_MESSAGES, **_FIXED, "max_tokens": 6}, streams=True, wrong={}),
    Api("/completion", {"prompt": "kin sol", **_FIXED, "n_predict": 6}, streams=True, wrong={"prompt": {}}),
    Api("/infill", {"input_prefix": "kin sol", "input_suffix": " mer", **_FIXED, "n_predict": 6}, streams=True,
        wrong={"input_prefix": "kin"}),
    Api("/v1/messages/count_tokens", _MESSAGES, is_light=True, wrong={}),
    Api("/v1/chat/completions/input_tokens", _MESSAGES, is_light=True, wrong={}),
    Api("/v1/responses/input_tokens", {"input": "kin sol"}, is_light=True, wrong={}),
    Api("/tokenize", {"content": "kin sol mer", "with_pieces": True}, is_light=True),
    Api("/detokenize", {"tokens": [300, 400, 500]}, is_light=True),
    Api("/apply-template", _MESSAGES, is_light=True, wrong={}),
    Api("/v1/embeddings", {"input": ["kin sol", "mer"]}, VECTORS, wrong={"input": 1}),
    Api("/v1/embeddings", {"input": "kin", "encoding_format": "base64"}, VECTORS),
    Api("/v1/rerank", _DOCUMENTS, RANKS, wrong={"query": "kin"}),
    Api("/v1/rerank", {**_DOCUMENTS, "top_n": 1}, RANKS),
)  # fmt: skip


def form(file: bytes, **fields: str) -> bytes:
    """A multipart form with the file ahead of the fields, as curl sends them in the order of its arguments."""
    parts = [(b'name="file"; filename="a.wav"\r\nContent-Type: audio/wav', file)]
    parts += [(f'name="{name}"'.encode(), value.encode()) for name, value in fields.items()]
    pieces = (b"----b\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % part for part in parts)
    return b"".join((*pieces, b"----b--\r\n"))


def start_proxy(
    folder: Path, engines: Mapping[str, Sequence[Addressed]], aliases: Mapping[str, str], **settings: str
) -> Proxy:
    """The program in front of ``engines`` by model, with an alias for each model, and a usage ledger."""
    urls = [one.url for one in chain.from_iterable(engines.values())]
    backends = "".join(f"  - {{url: {url!r}, accepts_unlisted_models: false}}\n" for url in urls)
    models = "".join(f"  {model}: {{aliases: [{alias}]}}\n" for model, alias in aliases.items())
    folder.mkdir()
    (folder / "fleet.yaml").write_text(f"backends:\n{backends}models:\n{models}")
    files = {"CONFIG_FILE": str(folder / "fleet.yaml"), "USAGE_FILE": str(folder / "usage.db")}
    return Proxy(folder, urls, **files, ADMIN_KEY=_ADMIN, **settings)


async def counts(proxy: Proxy, rows: Mapping[str, tuple[int, ...]], key: str = "") -> None:
    """Wait until the ledger has these requests, estimated requests, tokens of prompts and of answers, by model."""
    found: dict[str, tuple[int, ...]] = {}

    async def is_counted() -> bool:
        query = f"by=model&key={key}" if key else "by=model"
        reply = await send(proxy.url, f"/admin/usage?{query}", headers={"x-admin-key": _ADMIN})
        names = ("requests", "estimated_requests", "input_tokens", "output_tokens")
        found.clear()
        found.update({row["model"]: tuple(row[name] for name in names) for row in reply.json["rows"]})
        return found == rows

    try:
        await eventually(is_counted, 10)
    except AssertionError:
        assert found == rows
        raise


def comparable(reply: Reply) -> tuple[int, str, Any]:
    """Status, type and content of a reply that must be the same in two replies to one request."""
    kind = reply.headers.get("content-type", "")
    assert reply.complete
    if kind.startswith("text/event-stream"):
        return reply.status, kind, [_without_changing(event) for event in _events(reply.body)]
    return reply.status, kind, _without_changing(reply.json)


def tokens_of(reply: Reply) -> tuple[int, int]:
    """The tokens of prompt and answer that an engine reports in a reply."""
    is_stream = reply.headers["content-type"].startswith("text/event-stream")
    parts = [event for event in _events(reply.body) if isinstance(event, dict)] if is_stream else [reply.json]
    usage: dict[str, Any] = {}
    for part in parts:
        for holder in (part, part.get("response") or {}, part.get("message") or {}):
            usage |= holder.get("usage") or {}
    if "cache_read_input_tokens" in usage:
        usage["input_tokens"] += usage["cache_read_input_tokens"]
    timings = parts[-1].get("timings")
    if not usage and timings:
        return timings["prompt_n"] + timings["cache_n"], timings["predicted_n"]
    read = usage.get("prompt_tokens", usage.get("input_tokens", 0))
    return read, usage.get("completion_tokens", usage.get("output_tokens", 0))


def _events(body: bytes) -> Iterator[Any]:
    """The data of each event; text that is not JSON as it is."""
    *events, end = body.decode().split("\n\n")
    assert end == ""
    for event in events:
        name, _, data = event.rpartition("data: ")
        yield json.loads(data) if data.startswith("{") else event
        assert not name or name.startswith("event: ")


def _without_changing(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_changing(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {name: _without_changing(item) for name, item in value.items() if name not in _CHANGING}
    if "cache_read_input_tokens" in kept:  # Anthropic counts them apart from the others
        kept["input_tokens"] += kept.pop("cache_read_input_tokens")
    return kept
