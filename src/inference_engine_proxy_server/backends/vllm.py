"""vLLM's OpenAI-compatible server.

Sources: vLLM ``docs/usage/metrics.md``, ``vllm/v1/metrics/loggers.py``, ``vllm/v1/engine/core_client.py``; measured on
vLLM 0.32.0.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import ClassVar

import msgspec

from inference_engine_proxy_server.backends.base import (
    Api,
    BackendState,
    BaseBackend,
    Get,
    ModelEntry,
    ModelNames,
    Probe,
    Thresholds,
    UnreadableState,
    context_lengths,
    non_negative,
)
from inference_engine_proxy_server.backends.begun_answers import BegunAnswers
from inference_engine_proxy_server.backends.fingerprint import Fingerprint, source_of
from inference_engine_proxy_server.backends.prometheus_text import samples, sum_samples
from inference_engine_proxy_server.backends.seen_capacity import SeenCapacity
from inference_engine_proxy_server.backends.tokenizer_probe import SKIPPED_POLLS, TokenizerProbe

__all__ = ["VLLMBackend"]

_RUNNING = "vllm:num_requests_running"
_WAITING = "vllm:num_requests_waiting"
_SLEEP_STATE = "vllm:engine_sleep_state"
_KV_USAGE = "vllm:kv_cache_usage_perc"
_KV_USAGE_FORMERLY = "vllm:gpu_cache_usage_perc"
_CACHE_CONFIG = "vllm:cache_config_info"  # the labels hold the numbers; the value is always 1
_CACHE_SIZES = re.compile(rb'[{,](kv_cache_size_tokens|num_gpu_blocks|block_size)="([1-9][0-9]{0,15})"')
_PROMPT_TOKENS = "vllm:prompt_tokens_total"
_GENERATED_TOKENS = "vllm:generation_tokens_total"
# Not messages: it begins a new answer after a trailing assistant message (vllm/entrypoints/anthropic/serving.py). Not
# responses: versions before January 2026 (vllm#32100) begin a new answer, and gpt-oss models do in any version.
_CONTINUES = frozenset({Api.COMPLETIONS})
_BEGUN, _SPACE = "begun", " \n\n"
_BEGUN_ANSWER: Mapping[str, object] = {
    "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": _BEGUN + _SPACE}],
    "add_generation_prompt": False,
    "continue_final_message": True,
}
_REJECTED = 400
_SHOWN = (
    _PROMPT_TOKENS,
    _GENERATED_TOKENS,
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
)


class VLLMBackend(BaseBackend):
    """Health from ``/health``, load and sleep state from ``/metrics``, models from ``/v1/models``.

    Asleep or paused, it answers ``/health`` with 200 and reports 0 running and 0 waiting, while requests hang until it
    is woken. It would look like the least loaded backend and attract every request, so both states make it not live.
    While it starts it does not listen at all: there is no "loading" answer.

    Its API server and its engine are two processes. When only the engine hangs, ``/health`` stays 200 and ``/metrics``
    repeats its last numbers: 0 running and 0 waiting if it was idle, whatever was sent since. The only symptom is that
    ``progress`` stays constant while it has requests.
    """

    providers: ClassVar[tuple[str, ...]] = ("vllm",)

    @classmethod
    async def recognizes(cls, probe: Probe) -> bool:
        """By its metrics, which need no key, if it does not show its models without one."""
        reply = await probe.get("/v1/models")
        return reply is not None and reply.status == 401 and any(samples(await probe.text("/metrics"), _RUNNING))

    def __init__(self, url: str, get: Get, thresholds: Thresholds) -> None:
        """As :class:`BaseBackend`; ``thresholds`` are ignored: vLLM queues well, and its queue is part of its load."""
        super().__init__(url, get, thresholds)
        # Only a server in development mode can be paused and has /is_paused. Any other server would log a 404 at every
        # poll, so the first rejection ends polling, until /health fails: after that it may be another process.
        self._has_is_paused = True
        self._seen_capacity = SeenCapacity()
        self._version: str | None = None  # unknown until the server was asked, once
        self._tokenizers: dict[str, TokenizerProbe] = {}  # likewise, by model
        self._begun_answers: BegunAnswers | None = None  # as the version
        self._polls_to_skip = 0  # without a question about begun answers, because silence delays each poll that asks

    async def fetch_state(self) -> BackendState:
        """Everything it reports, summed over all its engines (data parallel) and models.

        Not live while ``/health`` is not 200 (503: its engine died), and while it is asleep or paused.
        ``capacity``: see :class:`SeenCapacity`. It does not report ``--max-num-seqs`` (except in ``/server_info`` of a
        development server), and its KV cache may allow fewer requests.
        ``memory_tokens``: of its KV caches in GPU memory; it does not report offloaded tokens in host memory.
        ``progress``: tokens read and generated since it started, plus the KV cache usage.
        ``figures``: token counters since it started, and the KV cache usage of its fullest engine (0 to 1) as
        ``vllm:kv_cache_usage_perc``, even if the server uses the old name ``vllm:gpu_cache_usage_perc``.

        Raises:
            UnreadableState, OSError, TimeoutError: as :class:`Get`, for ``/health``.
        """
        if (status := await self._health_status()) != 200:
            return _not_live(f"GET /health answered {status}")
        models, paused = await self.fetch_models(), await self._is_paused()
        page = await self.fetch_body("/metrics") or b""
        if _is_asleep(page):
            return _not_live("asleep")
        if paused:
            return _not_live("paused")
        load = sum_samples(page, (_RUNNING, _WAITING))
        running, waiting = non_negative(load.get(_RUNNING)), non_negative(load.get(_WAITING))
        version = await self._fetch_version()
        return BackendState(
            ready=True,
            requests_processing=running,
            requests_waiting=waiting,
            capacity=self._seen_capacity.look(running, waiting),
            continued_apis=_CONTINUES,
            begun_answers=await self._fetch_begun_answers(models),
            context_use=non_negative(max(_kv_usages(page), default=None)),
            memory_tokens=_memory_tokens(page),
            progress=_progress(page),
            models=models,
            model_names=ModelNames.STRICT,
            contexts=context_lengths(models, lambda model: model.get("max_model_len")),
            bounds_max_tokens=True,  # 400, "max_tokens=... cannot be greater than max_model_len=..."
            streams_usage_on_request=True,
            figures=_figures(page),
            engine_version=version,
            fingerprints=await self._fingerprints_of(models, version),
        )

    async def _health_status(self) -> int:
        status = 0
        try:
            status = (await self.get("/health")).status
        finally:
            if status != 200:
                self._has_is_paused = True
                self._seen_capacity = SeenCapacity()
                self._version = self._begun_answers = None
                self._polls_to_skip = 0
                self._tokenizers = {}
        return status

    async def _fetch_version(self) -> str | None:
        """The version of the server; asked for once, until ``/health`` fails."""
        if self._version is None:
            try:
                reply = await self.get("/version")
                self._version = msgspec.json.decode(reply.body, type=_Version).version
            except (OSError, UnreadableState):
                return None
            except (ValueError, RecursionError):
                self._version = ""  # a server without that page is not asked again
        return self._version or None

    async def _fingerprints_of(
        self, models: Sequence[ModelEntry] | None, version: str | None
    ) -> Mapping[str, Fingerprint]:
        """By model id, without LoRA adapters; each tokenizer is asked once, until ``/health`` fails."""
        found = {}
        for entry in models or ():
            model, source = entry["id"], source_of(entry)
            if source is None:
                continue
            if model not in self._tokenizers:
                self._tokenizers[model] = TokenizerProbe(self.get, model=model, prompt=..., add_special_tokens=False)
            tokenizer = await self._tokenizers[model].hash()
            found[model] = Fingerprint(source=source, tokenizer=tokenizer, version=version, engine="vllm")
        return found

    async def _fetch_begun_answers(self, models: tuple[ModelEntry, ...] | None) -> BegunAnswers:
        """What its prompts have of a message that it continues: asked once, until ``/health`` fails.

        Transformers removes white space from the end of such a prompt if the chat template removes it from messages, as
        those of Llama 3 and Gemma do (``transformers/utils/chat_template_utils.py``; measured on vLLM 0.32.0). Some
        renderers reject the request (``vllm/renderers/inkling.py``). LoRA adapters have the template of the first
        model. A server that does not answer, or has no such pages, is assumed to remove white space.
        """
        if self._polls_to_skip > 0:
            self._polls_to_skip -= 1
        elif self._begun_answers is None and models:
            try:
                self._begun_answers = await self._ask_for_begun_answers(models[0]["id"])
            except TimeoutError:
                self._polls_to_skip = SKIPPED_POLLS
            except (OSError, UnreadableState, ValueError, RecursionError):
                self._begun_answers = BegunAnswers.TRIMMED
        return self._begun_answers or BegunAnswers.TRIMMED

    async def _ask_for_begun_answers(self, model: str) -> BegunAnswers:
        reply = await self.get("/tokenize", msgspec.json.encode({"model": model, **_BEGUN_ANSWER}))
        if reply.status == _REJECTED:
            return BegunAnswers.LOST
        tokens = msgspec.json.decode(reply.body, type=_Tokens).tokens
        reply = await self.get("/detokenize", msgspec.json.encode({"model": model, "tokens": tokens}))
        prompt = msgspec.json.decode(reply.body, type=_Prompt).prompt
        if prompt.endswith(_BEGUN + _SPACE):
            return BegunAnswers.KEPT
        return BegunAnswers.TRIMMED if prompt.rstrip().endswith(_BEGUN) else BegunAnswers.LOST

    async def _is_paused(self) -> bool:
        if not self._has_is_paused:
            return False
        try:
            reply = await self.get("/is_paused")
        except (OSError, UnreadableState):
            return False
        self._has_is_paused = reply.status == 200
        try:
            return self._has_is_paused and msgspec.json.decode(reply.body, type=_Paused).is_paused
        except (ValueError, RecursionError):
            return False


class _Paused(msgspec.Struct):
    is_paused: bool


class _Tokens(msgspec.Struct):
    tokens: list[int]


class _Prompt(msgspec.Struct):
    prompt: str


class _Version(msgspec.Struct):
    version: str


def _not_live(reason: str) -> BackendState:
    return BackendState(ready=False, live=False, reason=reason, model_names=ModelNames.STRICT)


def _is_asleep(page: bytes) -> bool:
    """Whether any engine sleeps: ``awake`` is 0, or a sleep level (``weights_offloaded``, ``discard_all``) is 1.

    False for a page without the metric: an older server, or no page at all.
    """
    return any(
        sample.value == 0 if b'sleep_state="awake"' in sample.labels else sample.value > 0
        for sample in samples(page, _SLEEP_STATE)
    )


def _progress(page: bytes) -> float | None:
    # Both counters stay constant while a prompt is read in chunks: measured on vLLM 0.32.0, the prompt is counted once
    # it has been read completely, and until then only the KV cache usage changes.
    counted = sum_samples(page, (_PROMPT_TOKENS, _GENERATED_TOKENS))
    usages = _kv_usages(page)
    if len(counted) < 2 or not usages:
        return None
    return non_negative(sum(counted.values()) + sum(usages))


def _kv_usages(page: bytes) -> list[float]:
    return [sample.value for name in (_KV_USAGE, _KV_USAGE_FORMERLY) for sample in samples(page, name)]


def _memory_tokens(page: bytes) -> int | None:
    # One sample per engine. Each has kv_cache_size_tokens of that engine, and num_gpu_blocks of all engines. The former
    # is newer, and the only correct one if some layers do not keep every token.
    engines = [dict(_CACHE_SIZES.findall(sample.labels)) for sample in samples(page, _CACHE_CONFIG)]
    sizes = [int(labels[b"kv_cache_size_tokens"]) for labels in engines if b"kv_cache_size_tokens" in labels]
    if sizes:
        return sum(sizes)
    blocks = [int(labels[b"num_gpu_blocks"]) * int(labels[b"block_size"]) for labels in engines if len(labels) == 2]
    return max(blocks, default=None)


def _figures(page: bytes) -> dict[str, float]:
    sums: dict[str, float] = sum_samples(page, _SHOWN)
    # Shares cannot be summed, and the fullest engine preempts first.
    if usages := _kv_usages(page):
        sums[_KV_USAGE] = max(usages)
    return {name: value for name, value in sums.items() if non_negative(value) is not None}
