"""The HTTP interface of llama.cpp's ``llama-server``, as build 11549 answers, with ``--metrics``.

Not emulated: the few HTTP threads, which idle connections occupy.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import msgspec

from emulation.api import Counts, EngineApi, Identity, Outcome, TokenizeRequest, event, token_numbers
from emulation.http_server import Exchange, Fields, Habits
from emulation.messages import ChatRequest
from simulation.batching import BatchingEngine

__all__ = ["LlamaCppApi"]

_COMMON = ((b"Server", b"llama.cpp"), (b"Access-Control-Allow-Origin", b""))
_JSON = (*_COMMON, (b"Content-Type", b"application/json; charset=utf-8"))
_STREAM = (
    *_COMMON,
    (b"X-Accel-Buffering", b"no"),
    (b"Content-Type", b"text/event-stream"),
    (b"Transfer-Encoding", b"chunked"),
)
_FINGERPRINT = "b0-emulated"
_COUNTERS = (
    ("prompt_tokens_total", "Number of prompt tokens processed, excluding cached tokens"),
    ("prompt_tokens_cached_total", "Number of prompt tokens reused from the cache"),
    ("prompt_seconds_total", "Total time spent processing prompts"),
    ("tokens_predicted_total", "Number of generation tokens processed"),
    ("tokens_predicted_seconds_total", "Total time spent generating tokens"),
    ("n_decode_total", "Total number of llama_decode() calls"),
    ("n_tokens_max", "Largest observed sequence length (prompt + generation)"),
)
_GAUGES = (
    ("prompt_tokens_seconds", "Average prompt throughput in tokens/s"),
    ("predicted_tokens_seconds", "Average generation throughput in tokens/s"),
    ("requests_processing", "Number of requests processing"),
    ("requests_deferred", "Number of requests deferred"),
)
_CHAT_TEMPLATE = (
    "{%- for message in messages -%}{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)


class LlamaCppApi(EngineApi):
    """The interface; it accepts any model name, as a server with a single model does."""

    habits = Habits(5.0, 100, ((b"Keep-Alive", b"timeout=5, max=100"),))
    begins_at_once = False

    def page(self, exchange: Exchange, engine: BatchingEngine, counts: Counts) -> None:
        state = engine.state()
        match "GET" if exchange.method == "HEAD" else exchange.method, exchange.path:
            case "GET", "/health" | "/v1/health":
                self.json(exchange, b'{"status":"ok"}')
            case "GET", "/v1/models" | "/models":
                self.json(exchange, msgspec.json.encode(self._models()))
            case "GET", "/props":
                self.json(exchange, msgspec.json.encode(self._props(state.capacity or 1)))
            case "GET", "/slots":
                slots = range(state.capacity or 1)
                self.json(exchange, msgspec.json.encode([self._slot(slot, state.processing) for slot in slots]))
            case "GET", "/metrics":
                page = self._metrics(engine, counts)
                exchange.reply([*_COMMON, (b"Content-Type", b"text/plain; version=0.0.4")], page)
            case "POST", "/tokenize" | "/apply-template" as path:
                self._read_text(exchange, path)
            case _:
                self.json(exchange, _error(404, "File Not Found", "not_found_error"), 404)

    def json(self, exchange: Exchange, body: bytes, status: int = 200) -> None:
        exchange.reply(_JSON, body, status, closes=status >= 400)

    def stream_fields(self) -> Fields:
        return _STREAM

    def serves(self, request: ChatRequest) -> bool:  # noqa: ARG002
        return True

    def refuse_body(self, exchange: Exchange, problem: str) -> None:
        self.json(exchange, _error(400, problem, "invalid_request_error"), 400)

    def refuse_model(self, exchange: Exchange, name: str) -> None:
        raise NotImplementedError  # it serves all names

    def refuse_length(self, exchange: Exchange, tokens: int) -> None:
        problem = f"request ({tokens} tokens) exceeds the available context size ({self.most_context} tokens)"
        error = {"code": 400, "message": f"{problem}, try increasing it", "type": "exceed_context_size_error"}
        sizes = {"n_prompt_tokens": tokens, "n_ctx": self.most_context}
        self.json(exchange, msgspec.json.encode({"error": error | sizes}), 400)

    def first(self, identity: Identity, text: str) -> Iterator[bytes]:
        role = _chunk(identity, b'{"role":"assistant","content":null}')
        yield event(role) + self.piece(identity, text)

    def piece(self, identity: Identity, text: str) -> bytes:
        return event(_chunk(identity, b'{"content":"%b"}' % text.encode()))

    def last(self, identity: Identity, text: str, outcome: Outcome) -> Iterator[bytes]:
        if text:
            yield self.piece(identity, text)
        timings = b',"timings":%b}' % msgspec.json.encode(_timings(outcome))
        end = _chunk(identity, b"{}", b'"%b"' % outcome.reason.encode())
        if outcome.includes_usage:
            with_usage = b',"usage":%b' % msgspec.json.encode(_usage(outcome)) + timings
            yield event(end) + event(_head(identity, b"[]") + with_usage)
        else:
            yield event(end[:-1] + timings)
        yield event(b"[DONE]")

    def whole(self, identity: Identity, text: str, outcome: Outcome) -> bytes:
        answer = {
            "choices": [
                {"finish_reason": outcome.reason, "index": 0, "message": {"role": "assistant", "content": text}}
            ],
            "created": identity.created,
            "model": identity.model,
            "system_fingerprint": _FINGERPRINT,
            "object": "chat.completion",
            "usage": _usage(outcome),
            "id": identity.name,
            "timings": _timings(outcome),
        }
        return msgspec.json.encode(answer)

    def _models(self) -> dict[str, Any]:
        name = self.model_name
        meta = {
            "vocab_type": 1, "n_vocab": 32_000, "n_ctx": self.most_context, "n_ctx_train": self.most_context,
            "n_embd": 4096, "n_params": 8_000_000_000, "size": 4_900_000_000, "ftype": "Q4_K - Medium",
        }  # fmt: skip
        listed = {
            "id": name, "aliases": [name], "tags": [], "object": "model",
            "architecture": {"input_modalities": ["text"], "output_modalities": ["text"]},
            "created": int(time.time()), "owned_by": "llamacpp", "meta": meta,
        }  # fmt: skip
        details = {
            "parent_model": "", "format": "gguf", "family": "", "families": [""], "parameter_size": "",
            "quantization_level": "",
        }  # fmt: skip
        ollama = {
            "name": name, "model": name, "modified_at": "", "size": "", "digest": "", "type": "model",
            "description": "", "tags": [""], "capabilities": ["completion"], "parameters": "", "details": details,
        }  # fmt: skip
        return {"models": [ollama], "object": "list", "data": [listed]}

    def _props(self, slots: int) -> dict[str, Any]:
        return {
            "default_generation_settings": {"params": {"seed": 4294967295}, "n_ctx": self.most_context},
            "total_slots": slots, "model_alias": self.model_name, "model_path": self.model_name,
            "modalities": {"vision": False, "video": False, "audio": False}, "endpoint_slots": True,
            "endpoint_props": False, "endpoint_metrics": True, "ui": False, "chat_template": _CHAT_TEMPLATE,
            "bos_token": "", "eos_token": "<|im_end|>", "build_info": _FINGERPRINT, "is_sleeping": False,
        }  # fmt: skip

    def _slot(self, slot: int, processing: int) -> dict[str, Any]:
        return {"id": slot, "n_ctx": self.most_context, "speculative": False, "is_processing": slot < processing}

    def _metrics(self, engine: BatchingEngine, counts: Counts) -> bytes:
        state = engine.state()
        values = {
            "prompt_tokens_total": counts.read,
            "prompt_tokens_cached_total": counts.cached,
            "prompt_seconds_total": counts.read_seconds,
            "tokens_predicted_total": counts.written,
            "tokens_predicted_seconds_total": counts.written_seconds,
            "n_decode_total": engine.steps_made,
            "n_tokens_max": counts.longest,
            "prompt_tokens_seconds": _rate(counts.read, counts.read_seconds),
            "predicted_tokens_seconds": _rate(counts.written, counts.written_seconds),
            "requests_processing": state.processing,
            "requests_deferred": state.waiting,
        }
        lines = []
        for kind, families in (("counter", _COUNTERS), ("gauge", _GAUGES)):
            for name, meaning in families:
                lines += [f"# HELP llamacpp:{name} {meaning}", f"# TYPE llamacpp:{name} {kind}"]
                lines.append(f"llamacpp:{name} {values[name]:.12g}")
        return "\n".join([*lines, ""]).encode()

    def _read_text(self, exchange: Exchange, path: str) -> None:
        try:
            asked = msgspec.json.decode(exchange.body, type=TokenizeRequest)
        except msgspec.MsgspecError as error:
            return self.refuse_body(exchange, str(error))
        if path == "/tokenize":
            numbers = token_numbers(asked.content)
            pieces = [{"id": number, "piece": ""} for number in numbers] if asked.with_pieces else numbers
            return self.json(exchange, msgspec.json.encode({"tokens": pieces}))
        messages = asked.messages or []
        texts = [f"<|im_start|>{message.role}\n{message.text}<|im_end|>\n" for message in messages]
        if messages and messages[-1].role == "assistant":
            texts[-1] = texts[-1].removesuffix("<|im_end|>\n")  # it continues a begun answer
        else:
            texts.append("<|im_start|>assistant\n")
        return self.json(exchange, msgspec.json.encode({"prompt": "".join(texts)}))


def _chunk(identity: Identity, delta: bytes, reason: bytes = b"null") -> bytes:
    return _head(identity, b'[{"finish_reason":%b,"index":0,"delta":%b}]' % (reason, delta)) + b"}"


def _head(identity: Identity, choices: bytes) -> bytes:
    members = f'"created":{identity.created},"id":"{identity.name}","model":"{identity.model}"'
    return b'{"choices":%b,%b,"system_fingerprint":"%b","object":"chat.completion.chunk"' % (
        choices,
        members.encode(),
        _FINGERPRINT.encode(),
    )


def _usage(outcome: Outcome) -> dict[str, Any]:
    usage = outcome.usage
    return {
        "completion_tokens": usage.answer_tokens,
        "prompt_tokens": usage.prompt_tokens,
        "total_tokens": usage.prompt_tokens + usage.answer_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _timings(outcome: Outcome) -> dict[str, Any]:
    usage = outcome.usage
    read, written = usage.prompt_tokens - usage.cached_tokens, usage.answer_tokens
    return {
        "cache_n": usage.cached_tokens,
        "prompt_n": read,
        "prompt_ms": usage.prompt_seconds * 1000,
        "prompt_per_token_ms": usage.prompt_seconds * 1000 / read,
        "prompt_per_second": _rate(read, usage.prompt_seconds),
        "predicted_n": written,
        "predicted_ms": outcome.written_seconds * 1000,
        "predicted_per_token_ms": outcome.written_seconds * 1000 / written,
        "predicted_per_second": _rate(written, outcome.written_seconds),
    }


def _rate(count: int, seconds: float) -> float:
    return count / seconds if seconds else 0.0


def _error(code: int, message: str, kind: str) -> bytes:
    return msgspec.json.encode({"error": {"code": code, "message": message, "type": kind}})
