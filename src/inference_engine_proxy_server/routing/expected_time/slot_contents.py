"""What each slot of an engine holds, for engines that keep a separate cache for each slot, such as llama.cpp.

The prefix index knows that a backend read a prompt, but not in which slot. A busy slot shares nothing with the others,
and a request that reuses the beginning of a slot's prompt overwrites the rest of it. This model follows the rules of
llama.cpp (``get_available_slot`` in ``tools/server/server-context.cpp``), which reports no slots' contents.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right

import msgspec

from inference_engine_proxy_server.requests.prompt import ENDS

__all__ = ["Slot", "SlotContents"]

_MOST_SLOTS = 32  # more slots are not followed: each request costs time for each of them
_LEAST_SIMILARITY = 0.1  # of the prompt; otherwise the slot unused for longest is taken (--slot-prompt-similarity)
_SAVED_BELOW = 0.5  # a slot's prompt is copied to host memory if less than this share of it is reused
_LOST = 256  # overwritten prompts that are remembered
_GAIN = 1 / 4  # weight of each reply in ``shares``


class Slot(msgspec.Struct, gc=False, eq=False):
    """A slot: the hashes of the prompt that it holds, see :attr:`~.prompt.Prompt.chain`."""

    chain: array[int]
    is_busy: bool = True


class SlotContents:
    """The prompts that the slots of one backend hold.

    Attributes:
        shares: probability that a busy slot shares its prompt nevertheless, learned from replies: other engines with a
            known number of slots may.
    """

    __slots__ = ("_busy", "_count", "_lost", "_slots", "shares")

    def __init__(self) -> None:
        self._busy = 0
        self._count = 0.0  # how many slots the engine has
        self._slots: list[Slot] = []  # the one unused for longest first; more than ``_count`` while requests wait
        self._lost: dict[int, None] = {}  # last hashes of overwritten prompts, the oldest first
        self.shares = 0.0

    def __len__(self) -> int:
        """Number of slots that hold a prompt."""
        return len(self._slots)

    def usable(self, chain: array[int], held: int, slots: float) -> float:
        """Bytes of a prompt that a new request can reuse, at most ``held``.

        Args:
            chain: the prompt's hashes.
            held: bytes of the prompt that the backend has read before, above 0.
            slots: number of slots.
        """
        at = bisect_right(ENDS, held) - 1
        last, holding = chain[at], 0
        for slot in self._slots:
            own = slot.chain
            if len(own) > at and own[at] == last:
                if not slot.is_busy:
                    return held
                holding += 1
        if not holding and last not in self._lost:
            return held  # in host memory
        if self._busy >= slots:  # whichever slot becomes free first
            return held * max(self.shares, min(1.0, holding / slots))
        alike = max((_blocks_alike(slot.chain, chain) for slot in self._slots if not slot.is_busy), default=0)
        rest = min(held, ENDS[alike - 1]) if alike else 0
        return rest + self.shares * (held - rest)

    def take(self, chain: array[int], slots: float) -> Slot | None:
        """The slot in which a new prompt will be read; ``None`` if the slots are not followed."""
        if slots > _MOST_SLOTS:
            return None
        self._count = slots
        slot = self._chosen(chain) or Slot(chain)
        slot.chain, slot.is_busy = chain, True
        self._slots.append(slot)
        self._busy += 1
        if chain:
            self._lost.pop(chain[-1], None)
        return slot

    def release(self, slot: Slot) -> None:
        """The request in ``slot`` has ended. If others waited for a slot, one of them overwrites it."""
        slot.is_busy = False
        if slot in self._slots:
            self._busy -= 1
            self._slots.remove(slot)
            if len(self._slots) < self._count:
                self._slots.append(slot)

    def learn(self, *, was_shared: bool) -> None:
        """A prompt that only busy slots held was read; ``was_shared``: the reply reports it as cached."""
        self.shares += _GAIN * (was_shared - self.shares)

    def forget(self) -> None:
        """The engine was restarted."""
        self._busy = 0
        self._slots.clear()
        self._lost.clear()

    def _chosen(self, chain: array[int]) -> Slot | None:
        """Remove and return the free slot that the engine will choose; ``None`` if it is one that held nothing."""
        best, most, oldest = None, _LEAST_SIMILARITY * len(chain), None
        for slot in self._slots:
            if slot.is_busy:
                continue
            oldest = oldest or slot
            alike = _blocks_alike(slot.chain, chain)
            if alike > most:
                best, most = slot, alike
        if best is not None:
            self._note_overwritten(best.chain, most)
        elif len(self._slots) >= self._count:
            best = oldest
        if best is not None:
            self._slots.remove(best)
        return best

    def _note_overwritten(self, chain: array[int], kept: float) -> None:
        if _SAVED_BELOW * len(chain) <= kept < len(chain):
            self._lost[chain[-1]] = None
            if len(self._lost) > _LOST:
                del self._lost[next(iter(self._lost))]


def _blocks_alike(one: array[int], other: array[int]) -> int:
    """The number of leading hashes that two prompts share. If two hashes agree, so do all before them."""
    count = min(len(one), len(other))
    if not count or one[0] != other[0]:
        return 0
    if one[count - 1] == other[count - 1]:
        return count
    low, high = 1, count - 1
    while low < high:
        middle = (low + high + 1) // 2
        if one[middle - 1] == other[middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low
