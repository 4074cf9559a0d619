"""Model of vLLM: first come, first served; chunked prefill alongside decoding; KV pages shared by prefix.

Source: ``vllm/v1/core/sched/scheduler.py``. The model reserves room for the whole answer at the start, while vLLM
preempts the latest sequence when pages run out; with this many pages, preemption would be rare.
"""

from __future__ import annotations

from dataclasses import dataclass

from simulation.batching import BatchingEngine, EngineState, Sequence, Speeds
from simulation.events import Events
from simulation.prefix_cache import BLOCK, Pages, PrefixCache

__all__ = ["TWO_H100_32B", "VllmEngine", "VllmSize"]

TWO_H100_32B = Speeds(
    # Qwen3-32B in bfloat16 on two H100s: 64 GB of weights at twice 3.35 TB/s take 9.6 ms; about as much again is lost
    # to launches and to communication between the two.
    fixed=0.014,
    per_sequence=0.00005,
    per_prompt_token=1 / 15_928,  # measured by llm-d on this machine; its default for peakPrefillThroughput
    per_context_token=262_144 / 6.7e12,  # 256 KiB of keys and values per token
    tokens_a_step=8192,  # --max-num-batched-tokens on an H100
)


@dataclass(frozen=True, slots=True)
class VllmSize:
    """``places``: --max-num-seqs; ``blocks``: 160 GB times 0.9, less weights and buffers, is 74 GB of pages."""

    places: int = 256
    blocks: int = 17_600


class VllmEngine(BatchingEngine):
    """One vLLM server."""

    def __init__(
        self,
        loop: Events,
        speeds: Speeds = TWO_H100_32B,
        size: VllmSize | None = None,
        *,
        reported_steps: int | None = None,
    ) -> None:
        super().__init__(loop, speeds, reported_steps=reported_steps)
        self._size = size or VllmSize()
        self.cache = PrefixCache(self._size.blocks)
        self._pages: dict[Sequence, Pages] = {}

    def state(self) -> EngineState:
        return EngineState(
            self.processing, len(self.waiting), None, self.cache.use, self.cache.blocks * BLOCK, self.tokens
        )

    def forget(self) -> None:
        self.cache.clear()

    def may_begin(self, sequence: Sequence) -> bool:
        if self.processing >= self._size.places:
            return False
        request = sequence.request
        return self.cache.has_room(request.prompt, self._match(sequence), request.prompt_tokens + request.answer.tokens)

    def begin(self, sequence: Sequence) -> None:
        request = sequence.request
        sequence.cached = self._match(sequence)
        self._pages[sequence] = self.cache.take(
            request.prompt, sequence.cached, request.prompt_tokens + request.answer.tokens
        )

    def has_read(self, sequence: Sequence) -> None:
        # Blocks can be shared from the step that computes them: each layer computes them before they are needed.
        self.cache.read(self._pages[sequence], sequence.context)

    def end(self, sequence: Sequence) -> None:
        self.cache.release(self._pages.pop(sequence), sequence.request.answer, self.loop.time())

    def _match(self, sequence: Sequence) -> int:
        request = sequence.request
        most = (request.prompt_tokens - 1) // BLOCK * BLOCK  # the last token must be computed
        return min(self.cache.match(request.prompt), most)
