"""vLLM's OpenAI-compatible server.

Sources: vLLM ``docs/usage/metrics.md``, ``vllm/v1/metrics/loggers.py``, ``vllm/v1/engine/core_client.py``; measured on
vLLM 0.32.0.
"""

from __future__ import annotations

import re
from typing import ClassVar

import msgspec

from inference_engine_proxy_server.backends.base import (
    BackendState,
    BaseBackend,
    Get,
    ModelNames,
    Thresholds,
    UnreadableState,
    contexts_told,
    non_negative,
)
from inference_engine_proxy_server.backends.prometheus_text import samples, sum_samples

__all__ = ["VLLMBackend"]

_RUNNING = "vllm:num_requests_running"
_WAITING = "vllm:num_requests_waiting"
_SLEEP_STATE = "vllm:engine_sleep_state"
_KV_USAGE = "vllm:kv_cache_usage_perc"
_KV_USAGE_FORMERLY = "vllm:gpu_cache_usage_perc"
_CACHE_CONFIG = "vllm:cache_config_info"  # its labels say it, its value is always 1
_CACHE_SIZES = re.compile(rb'[{,](kv_cache_size_tokens|num_gpu_blocks|block_size)="([1-9][0-9]{0,15})"')
_PROMPT_TOKENS = "vllm:prompt_tokens_total"
_GENERATED_TOKENS = "vllm:generation_tokens_total"
_SHOWN = (
    _PROMPT_TOKENS,
    _GENERATED_TOKENS,
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
)


class VLLMBackend(BaseBackend):
    """Health from ``/health``, load and sleep from ``/metrics``, models from ``/v1/models``.

    Asleep or paused, it answers ``/health`` with 200 and reads 0 running and 0 waiting, while requests hang
    until somebody wakes it: the idlest looking backend of all would swallow every request. So both exclude it.
    While it starts it does not listen at all: there is no "loading" answer.

    Its API and its engine are two processes. When the engine alone hangs, ``/health`` stays 200 and ``/metrics``
    repeats its last numbers, which are 0 running and 0 waiting if it was idle, whatever it has been sent since.
    Only that ``progress`` stands still while it has requests gives it away.
    """

    providers: ClassVar[tuple[str, ...]] = ("vllm",)

    def __init__(self, url: str, get: Get, thresholds: Thresholds) -> None:
        """As :class:`BaseBackend`; ``thresholds`` are not used: vLLM queues well, and its queue is its load."""
        super().__init__(url, get, thresholds)
        # Only a server in development mode can be paused and has /is_paused. The others would log a 404 at every
        # poll, so one refusal is enough, until /health fails: after that it may be another process.
        self._tells_paused = True
        self._most_running = 0.0

    async def fetch_metrics(self) -> tuple[float, bool]:
        """Requests running and waiting, and whether it takes new ones.

        Raises:
            UnreadableState: it is ready but does not tell its load, or ``/health`` is not HTTP.
            OSError, TimeoutError: ``/health`` did not answer.
        """
        return (await self.fetch_state()).load_and_ready()

    async def fetch_state(self) -> BackendState:
        """Everything it tells, summed over all its engines (data parallel) and models.

        Not live while ``/health`` is not 200 (503: its engine died), and while it is asleep or paused.
        ``capacity``: the most requests it has been seen running at a time, told only while others wait for them.
        ``memory_tokens``: of its KV caches in GPUs' memory; what it offloads to the host's it does not tell in tokens.
        ``progress``: tokens read and written since its start, and the share of the KV cache in use.
        ``figures``: token counters since its start, and the KV cache usage of its fullest engine (0 to 1) as
        ``vllm:kv_cache_usage_perc``, also where the server still says ``vllm:gpu_cache_usage_perc``.

        Raises:
            UnreadableState, OSError, TimeoutError: ``/health`` did not answer, or not in HTTP.
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
        return BackendState(
            ready=True,
            requests_processing=running,
            requests_waiting=waiting,
            capacity=self._capacity(running, waiting),
            context_use=max(_kv_usages(page), default=None),
            memory_tokens=_memory_tokens(page),
            progress=_progress(page),
            models=models,
            model_names=ModelNames.STRICT,
            contexts=contexts_told(models, lambda model: model.get("max_model_len")),
            bounds_max_tokens=True,  # 400, "max_tokens=... cannot be greater than max_model_len=..."
            figures=_figures(page),
        )

    async def _health_status(self) -> int:
        status = 0
        try:
            status = (await self.get("/health")).status
        finally:
            if status != 200:
                self._tells_paused = True
                self._most_running = 0.0
        return status

    def _capacity(self, running: float | None, waiting: float | None) -> int | None:
        # It states its --max-num-seqs nowhere (only /server_info of a development server does), and the KV cache may
        # allow fewer. What it runs while others wait is a floor only: measured on vLLM 0.32.0, a long prompt takes the
        # whole token budget of each step, and 1 of 16 places was used while 5 requests waited.
        self._most_running = max(self._most_running, running or 0.0)
        return int(self._most_running) if waiting and self._most_running else None

    async def _is_paused(self) -> bool:
        if not self._tells_paused:
            return False
        try:
            reply = await self.get("/is_paused")
        except (OSError, UnreadableState):
            return False
        self._tells_paused = reply.status == 200
        try:
            return self._tells_paused and msgspec.json.decode(reply.body, type=_Paused).is_paused
        except (ValueError, RecursionError):
            return False


class _Paused(msgspec.Struct):
    is_paused: bool


def _not_live(reason: str) -> BackendState:
    return BackendState(ready=False, live=False, reason=reason, model_names=ModelNames.STRICT)


def _is_asleep(page: bytes) -> bool:
    """Whether any engine sleeps: ``awake`` is 0, or a depth of sleep (``weights_offloaded``, ``discard_all``) is 1.

    A page without the metric (older servers, or none read) does not say so.
    """
    return any(
        sample.value == 0 if b'sleep_state="awake"' in sample.labels else sample.value > 0
        for sample in samples(page, _SLEEP_STATE)
    )


def _progress(page: bytes) -> float | None:
    # Both counters stand still while a prompt is read, chunk by chunk: measured on vLLM 0.32.0, it is counted when it
    # has been read, and until then only the KV cache fills up.
    counted = sum_samples(page, (_PROMPT_TOKENS, _GENERATED_TOKENS))
    usages = _kv_usages(page)
    if len(counted) < 2 or not usages:
        return None
    return non_negative(sum(counted.values()) + sum(usages))


def _kv_usages(page: bytes) -> list[float]:
    return [sample.value for name in (_KV_USAGE, _KV_USAGE_FORMERLY) for sample in samples(page, name)]


def _memory_tokens(page: bytes) -> int | None:
    # One sample an engine. Each repeats kv_cache_size_tokens, which is of one engine, and num_gpu_blocks, which is of
    # all. The former is younger, and the only one that is right if not all layers keep every token.
    engines = [dict(_CACHE_SIZES.findall(sample.labels)) for sample in samples(page, _CACHE_CONFIG)]
    sizes = [int(told[b"kv_cache_size_tokens"]) for told in engines if b"kv_cache_size_tokens" in told]
    if sizes:
        return sum(sizes)
    blocks = [int(told[b"num_gpu_blocks"]) * int(told[b"block_size"]) for told in engines if len(told) == 2]
    return max(blocks, default=None)


def _figures(page: bytes) -> dict[str, float]:
    told: dict[str, float] = sum_samples(page, _SHOWN)
    # A share cannot be summed, and the fullest engine is the first to preempt.
    if usages := _kv_usages(page):
        told[_KV_USAGE] = max(usages)
    return {name: value for name, value in told.items() if non_negative(value) is not None}
