"""Model of llama.cpp's ``llama-server``: slots with separate caches, and a prompt store in host memory.

Sources: ``get_available_slot`` and ``update_slots`` in ``tools/server/server-context.cpp``, ``server_prompt_cache`` in
``server-task.cpp``, read in November 2026.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from simulation.batching import BatchingEngine, EngineState, Sequence, Speeds
from simulation.events import Events
from simulation.requests import Prompt, common_tokens, token_count

__all__ = ["RTX_4090_8B", "LlamaCppEngine", "LlamaCppSize"]

_LEAST_SIMILARITY = 0.1  # --slot-prompt-similarity
_LEAST_KEPT_IN_SLOT = 0.5  # a slot's prompt is saved to the store if less than this fraction can be reused
_LEAST_KEPT_OF_STORED = 0.25  # a stored prompt is not loaded if less than this fraction can be reused

RTX_4090_8B = Speeds(
    # An 8B model, Q4_K_M: 4.9 GB of weights at 1 TB/s plus launches take 7 ms: 120 tokens per second for one stream,
    # as llama-bench measures on that card. Batched attention in four slots gains less than in vLLM's kernels.
    fixed=0.007,
    per_sequence=0.0008,
    per_prompt_token=1 / 5000,
    per_context_token=131_072 / 0.9e12,  # 128 KiB of keys and values per token
    tokens_a_step=2048,  # -b
)


@dataclass(frozen=True, slots=True)
class LlamaCppSize:
    """``slots``: -np; ``stored_tokens``: --cache-ram's 8 GiB; ``seconds_a_copied_token``: 128 KiB over PCIe 4."""

    slots: int = 4
    slot_context: int = 32_768
    stored_tokens: int = 65_536
    seconds_a_copied_token: float = 131_072 / 12e9


@dataclass(slots=True)
class _Slot:
    held: Prompt = ()
    used_at: float = -1.0
    sequence: Sequence | None = field(default=None)


class LlamaCppEngine(BatchingEngine):
    """One ``llama-server``."""

    begins_beyond_step = True

    def __init__(
        self,
        loop: Events,
        speeds: Speeds = RTX_4090_8B,
        size: LlamaCppSize | None = None,
        *,
        reported_steps: int | None = None,
    ) -> None:
        super().__init__(loop, speeds, reported_steps=reported_steps)
        self._size = size or LlamaCppSize()
        self._slots = [_Slot() for _ in range(self._size.slots)]
        self._stored: list[Prompt] = []  # the oldest first

    def state(self) -> EngineState:
        held = sum(token_count(slot.held) for slot in self._slots)
        return EngineState(
            self.processing,
            len(self.waiting),
            self._size.slots,
            held / (self._size.slots * self._size.slot_context),
            None,
            self.tokens,
        )

    @property
    def has_free_slot(self) -> bool:
        return self.processing + len(self.waiting) < self._size.slots

    def forget(self) -> None:
        self._slots = [_Slot() for _ in range(self._size.slots)]
        self._stored = []

    def may_begin(self, sequence: Sequence) -> bool:  # noqa: ARG002 -- any free slot will do
        return any(slot.sequence is None for slot in self._slots)

    def begin(self, sequence: Sequence) -> None:
        prompt = sequence.request.prompt
        slot, is_saved = self._choose_slot(prompt, sequence.request.prompt_tokens)
        if is_saved and self._size.stored_tokens:
            self._swap(slot, prompt, sequence.request.prompt_tokens)
        slot.sequence = sequence
        # The last token is always recomputed, because its output is needed.
        sequence.cached = min(common_tokens(slot.held, prompt), sequence.request.prompt_tokens - 1)

    def has_read(self, sequence: Sequence) -> None:
        """Nothing to do: a busy slot's cache is not shared."""

    def end(self, sequence: Sequence) -> None:
        slot = next(slot for slot in self._slots if slot.sequence is sequence)
        slot.sequence = None
        slot.held = (*sequence.request.prompt, sequence.request.answer)
        slot.used_at = self.loop.time()

    def _choose_slot(self, prompt: Prompt, tokens: int) -> tuple[_Slot, bool]:
        """The free slot with the longest matching prefix, else the least recently used; whether to save its prompt."""
        free = [slot for slot in self._slots if slot.sequence is None]
        common = [common_tokens(slot.held, prompt) for slot in free]
        most = max(common)
        if most > _LEAST_SIMILARITY * tokens:
            best = free[common.index(most)]
            return best, most < _LEAST_KEPT_IN_SLOT * token_count(best.held)
        return min(free, key=lambda slot: slot.used_at), True

    def _swap(self, slot: _Slot, prompt: Prompt, tokens: int) -> None:
        """Save the prompt in ``slot``, and load a stored prompt that matches ``prompt`` better, if there is one."""
        held = token_count(slot.held)
        copied = self._store(slot.held)
        common = common_tokens(slot.held, prompt)
        kept, similarity = (common / held if held else -1.0), common / tokens
        best: Prompt | None = None
        for stored in self._stored:
            common = common_tokens(stored, prompt)
            kept_of_it = common / token_count(stored)
            if kept_of_it >= _LEAST_KEPT_OF_STORED and kept_of_it > kept and common / tokens > similarity:
                best, kept, similarity = stored, kept_of_it, common / tokens
        if best is not None:
            self._stored.remove(best)
            slot.held = best
            copied += token_count(best)
        while len(self._stored) > 1 and sum(map(token_count, self._stored)) > self._size.stored_tokens:
            self._stored.pop(0)
        self.delay(copied * self._size.seconds_a_copied_token)

    def _store(self, held: Prompt) -> int:
        """Store a prompt; returns the number of copied tokens."""
        tokens = token_count(held)
        if not held or any(common_tokens(stored, held) == tokens for stored in self._stored):
            return 0
        self._stored = [stored for stored in self._stored if common_tokens(stored, held) < token_count(stored)]
        self._stored.append(held)
        return tokens
