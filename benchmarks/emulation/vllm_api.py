"""The HTTP interface of vLLM, as 0.32.0 answers, with ``--enable-prompt-tokens-details`` and ``--stream-interval``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from email.utils import formatdate
from typing import Any

import msgspec

from emulation.api import Counts, EngineApi, Identity, Outcome, TokenizeRequest, event, token_numbers
from emulation.http_server import Exchange, Fields, Habits
from emulation.messages import ChatRequest, prompt_of
from simulation.batching import BatchingEngine
from simulation.prefix_cache import BLOCK
from simulation.requests import token_count

__all__ = ["VllmApi"]

_FINGERPRINT = "vllm-0.32.0-emulated"
_NOT_FOUND = b'{"detail":"Not Found"}'
_STREAM_FIELDS = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"transfer-encoding", b"chunked"))
_METRICS = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{{labels}}} {running}
# HELP vllm:num_requests_waiting Number of requests waiting to be processed.
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{{labels}}} {waiting}
# HELP vllm:num_requests_waiting_by_reason Number of waiting requests by reason.
# TYPE vllm:num_requests_waiting_by_reason gauge
vllm:num_requests_waiting_by_reason{{{labels},reason="capacity"}} {waiting}
vllm:num_requests_waiting_by_reason{{{labels},reason="deferred"}} 0.0
# HELP vllm:engine_sleep_state Engine sleep state; awake = 1 means engine is awake.
# TYPE vllm:engine_sleep_state gauge
vllm:engine_sleep_state{{{labels},sleep_state="awake"}} 1.0
vllm:engine_sleep_state{{{labels},sleep_state="weights_offloaded"}} 0.0
vllm:engine_sleep_state{{{labels},sleep_state="discard_all"}} 0.0
# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{{{labels}}} {usage}
# HELP vllm:prefix_cache_queries_total Prefix cache queries, in terms of number of queried tokens.
# TYPE vllm:prefix_cache_queries_total counter
vllm:prefix_cache_queries_total{{{labels}}} {queries}
# HELP vllm:prefix_cache_hits_total Prefix cache hits, in terms of number of cached tokens.
# TYPE vllm:prefix_cache_hits_total counter
vllm:prefix_cache_hits_total{{{labels}}} {hits}
# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{{{labels}}} {queries}
# HELP vllm:prompt_tokens_by_source_total Number of prompt tokens by source.
# TYPE vllm:prompt_tokens_by_source_total counter
vllm:prompt_tokens_by_source_total{{{labels},source="local_compute"}} {read}
vllm:prompt_tokens_by_source_total{{{labels},source="local_cache_hit"}} {hits}
vllm:prompt_tokens_by_source_total{{{labels},source="external_kv_transfer"}} 0.0
# HELP vllm:generation_tokens_total Number of generation tokens processed.
# TYPE vllm:generation_tokens_total counter
vllm:generation_tokens_total{{{labels}}} {written}
# HELP vllm:request_success_total Count of successfully processed requests.
# TYPE vllm:request_success_total counter
vllm:request_success_total{{engine="0",finished_reason="length",model_name="{model}"}} {answers}
# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{{block_size="{block}",engine="0",kv_cache_size_tokens="{cache}",num_gpu_blocks="{blocks}"}} 1.0
"""


class VllmApi(EngineApi):
    """The interface."""

    habits = Habits(5.0)
    begins_at_once = True

    def page(self, exchange: Exchange, engine: BatchingEngine, counts: Counts) -> None:
        match exchange.method, exchange.path:
            case "GET", "/health" | "/ping":
                exchange.reply(self._fields(), b"")
            case "GET", "/version":
                self.json(exchange, b'{"version":"0.32.0"}')
            case "GET", "/load":
                state = engine.state()
                self.json(exchange, b'{"server_load":%d}' % (state.processing + state.waiting))
            case "GET", "/v1/models":
                self.json(exchange, msgspec.json.encode(self._models()))
            case "GET", "/metrics":
                fields = [*self._fields(), (b"content-type", b"text/plain; version=1.0.0; charset=utf-8")]
                exchange.reply(fields, self._metrics(engine, counts))
            case "POST", "/tokenize":
                self._tokenize(exchange)
            case _:
                self.json(exchange, _NOT_FOUND, 404)

    def json(self, exchange: Exchange, body: bytes, status: int = 200) -> None:
        exchange.reply([*self._fields(), (b"content-type", b"application/json")], body, status)

    def stream_fields(self) -> Fields:
        return (*self._fields(), *_STREAM_FIELDS)

    def serves(self, request: ChatRequest) -> bool:
        return request.model in (self.model_name, "")

    def refuse_body(self, exchange: Exchange, problem: str) -> None:
        self.json(exchange, _error(400, problem, "Bad Request", "body"), 400)

    def refuse_model(self, exchange: Exchange, name: str) -> None:
        problem = f"The model `{name}` does not exist. Valid aliases: {self.model_name}."
        self.json(exchange, _error(404, problem, "NotFoundError", "model"), 404)

    def refuse_length(self, exchange: Exchange, tokens: int) -> None:
        problem = (
            f"This model's maximum context length is {self.most_context} tokens. However, your prompt contains at "
            f"least {tokens} input tokens. Please reduce the length of the input prompt."
        )
        self.json(exchange, _error(400, problem, "BadRequestError", "input_tokens"), 400)

    def first(self, identity: Identity, text: str) -> Iterator[bytes]:
        choice = b'{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}'
        yield event(b'%b"choices":[%b],"prompt_token_ids":null,"prompt_text":null}' % (_head(identity), choice))
        yield self.piece(identity, text)

    def piece(self, identity: Identity, text: str) -> bytes:
        return event(b"%b%b}" % (_head(identity), _choices(text, b"null")))

    def last(self, identity: Identity, text: str, outcome: Outcome) -> Iterator[bytes]:
        choices = _choices(text, b'"%b","stop_reason":null' % outcome.reason.encode())
        fingerprint = b',"system_fingerprint":"%b"}' % _FINGERPRINT.encode()
        if outcome.includes_usage:
            yield event(_head(identity) + choices + b"}")
            usage = msgspec.json.encode(_usage(outcome))
            yield event(b'%b"choices":[],"usage":%b' % (_head(identity), usage) + fingerprint)
        else:
            yield event(_head(identity) + choices + fingerprint)
        yield event(b"[DONE]")

    def whole(self, identity: Identity, text: str, outcome: Outcome) -> bytes:
        message = {
            "role": "assistant", "content": text, "refusal": None, "annotations": None, "audio": None,
            "function_call": None, "reasoning": None,
        }  # fmt: skip
        choice = {
            "index": 0, "message": message, "logprobs": None, "finish_reason": outcome.reason, "stop_reason": None,
            "token_ids": None, "routed_experts": None,
        }  # fmt: skip
        answer = {
            "id": identity.name, "object": "chat.completion", "created": identity.created, "model": identity.model,
            "choices": [choice], "service_tier": None, "system_fingerprint": _FINGERPRINT,
            "usage": _usage(outcome) | {"completion_tokens_details": None}, "prompt_logprobs": None,
            "prompt_token_ids": None, "prompt_text": None, "kv_transfer_params": None, "ec_transfer_params": None,
            "metrics": None,
        }  # fmt: skip
        return msgspec.json.encode(answer)

    def _fields(self) -> Fields:
        date = formatdate(usegmt=True).encode()
        return ((b"date", date), (b"server", b"uvicorn"), (b"vary", b"Origin"))

    def _models(self) -> dict[str, Any]:
        created = int(time.time())
        permission = {
            "id": "modelperm-emulated", "object": "model_permission", "created": created, "allow_create_engine": False,
            "allow_sampling": True, "allow_logprobs": True, "allow_search_indices": False, "allow_view": True,
            "allow_fine_tuning": False, "organization": "*", "group": None, "is_blocking": False,
        }  # fmt: skip
        model = {
            "id": self.model_name, "object": "model", "created": created, "owned_by": "vllm", "root": self.model_name,
            "parent": None, "max_model_len": self.most_context, "permission": [permission],
        }  # fmt: skip
        return {"object": "list", "data": [model]}

    def _metrics(self, engine: BatchingEngine, counts: Counts) -> bytes:
        state = engine.state()
        cache = state.memory_tokens or 0
        return _METRICS.format(
            labels=f'engine="0",model_name="{self.model_name}"',
            model=self.model_name,
            running=float(state.processing),
            waiting=float(state.waiting),
            usage=state.context_use,
            queries=float(counts.read + counts.cached),
            hits=float(counts.cached),
            read=float(counts.read),
            written=float(counts.written),
            answers=float(counts.answers),
            block=BLOCK,
            cache=cache,
            blocks=cache // BLOCK,
        ).encode()

    def _tokenize(self, exchange: Exchange) -> None:
        try:
            asked = msgspec.json.decode(exchange.body, type=TokenizeRequest)
        except msgspec.MsgspecError as error:
            return self.refuse_body(exchange, str(error))
        if asked.messages is not None:
            prompt = prompt_of(asked.messages, self.template)
            numbers = [piece.number % 32_000 for piece in prompt for _ in range(piece.tokens)]
            count = token_count(prompt)
        else:
            numbers = token_numbers(asked.prompt)
            count = len(numbers)
        found = {"count": count, "max_model_len": self.most_context, "tokens": numbers, "token_strs": None}
        return self.json(exchange, msgspec.json.encode(found))


def _head(identity: Identity) -> bytes:
    members = f'"id":"{identity.name}","object":"chat.completion.chunk","created":{identity.created}'
    return f'{{{members},"model":"{identity.model}",'.encode()


def _choices(text: str, reason: bytes) -> bytes:
    delta = b'{"index":0,"delta":{"content":"%b"},"logprobs":null,"finish_reason":%b,"token_ids":null}'
    return b'"choices":[%b]' % (delta % (text.encode(), reason))


def _usage(outcome: Outcome) -> dict[str, Any]:
    usage = outcome.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "total_tokens": usage.prompt_tokens + usage.answer_tokens,
        "completion_tokens": usage.answer_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


def _error(code: int, message: str, kind: str, parameter: str) -> bytes:
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": parameter, "code": code}})
