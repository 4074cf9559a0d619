"""Index of prompt prefixes by the backends that are expected to have them cached.

The index is a radix tree over the prompts' blocks, stored flat. A run is a sequence of blocks within which no two known
prompts diverge. Its key is a hash of the prompt from its beginning to the end of the run's first block, so the tree
needs no links. A look-up steps from run to run. Most prompts have two or three runs: a shared part, and their own.

No engine reports how long it keeps a run. Therefore, each backend has a clock, which advances by the number of uncached
prompt bytes that the backend reads, because the engine makes room for them by evicting the least recently used ones. A
run counts as cached until the clock has advanced by the cache's estimated size. The estimate starts as a guess and
follows the replies (:meth:`PrefixIndex.correct`).
"""

from __future__ import annotations

import msgspec

from inference_engine_proxy_server.requests.prompt import ENDS, Prompt

__all__ = ["Lookup", "Noted", "PrefixIndex"]

_USUALLY_KEPT = 1 << 20  # bytes, about 260,000 tokens: an engine on one or two GPUs, or llama.cpp's 8 GiB of RAM
_HASH_BYTES = 8
# Measured growth of a process per item in a full index, including malloc's rounding and fragmentation. Tables are
# counted at their actual size.
_RUN_BYTES = 358
_HOLDER_BYTES = 88
_SHARD_BYTES = 1 << 20  # of the budget per table: a table of 2,000 runs grows in about 50 us, a single one in 10 ms
_SLACK = 1.1  # tolerance for reported tokens: token lengths vary within a prompt
_DOUBT = 16  # one loss lowers the estimate by a 16th, consecutive losses by more and more


class _Run(msgspec.Struct, gc=False):
    """Blocks that have always occurred together.

    Attributes:
        key: hash of the beginning of their prompts, up to the end of their first block.
        hashes: of the blocks.
        holders: backend -> its clock when it last began to read them.
    """

    key: int
    hashes: bytes
    holders: dict[int, int]


class Lookup(msgspec.Struct, gc=False):
    """What the index knows about a prompt. Valid until the next prompt is recorded.

    Attributes:
        prompt: the prompt.
        chain: the hashes of its blocks.
        path: the runs that it begins with, each with the number of blocks up to its end.
        held: bytes of the prompt that each backend holds, for backends that hold any.
    """

    prompt: Prompt
    chain: bytes
    path: list[tuple[_Run, int]]
    held: dict[int, int]


class Noted(msgspec.Struct, gc=False):
    """The index's expectation of a backend at the time a prompt was sent there.

    Attributes:
        backend: the backend's number.
        size: bytes of the prompt.
        held: bytes of the prompt that the backend was expected to have cached.
        ages: the prompt's runs that the backend has ever read: the end of each run in bytes, and the number of uncached
            bytes that the backend has read since.
    """

    backend: int
    size: int
    held: int
    ages: list[tuple[int, int]]


class _CacheEstimate(msgspec.Struct):
    """One backend's cache.

    Attributes:
        clock: uncached prompt bytes that the backend has read.
        keeps: estimated size of the cache, in prompt bytes.
        reported: the size that the backend reports, in prompt bytes; ``None`` if it reports none.
        emptied_at: the clock when the cache was last emptied.
        losses: number of consecutive replies that reported less than expected.
    """

    clock: int = 0
    keeps: float = float(_USUALLY_KEPT)
    reported: float | None = None
    emptied_at: int = 0
    losses: int = 0

    def oldest(self) -> int:
        """The lowest clock reading whose runs are expected to be still cached."""
        return int(max(self.emptied_at, self.clock - self.keeps))


class PrefixIndex:
    """Index of prefixes by backend. Backends are small numbers that the caller assigns.

    Args:
        budget_bytes: memory limit, at least 64 KiB; the least recently used runs are dropped first.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        count = max(1, budget_bytes // _SHARD_BYTES)
        self._shards: list[dict[int, _Run]] = [{} for _ in range(count)]  # each ordered by last use, oldest first
        self._tables = [shard.__sizeof__() for shard in self._shards]
        self._bytes = sum(self._tables)
        self._runs = 0
        self._hand = 0  # index of the shard that drops a run next
        self._shelves: list[_CacheEstimate] = []
        self._oldest: list[int] = []  # ``oldest()`` of each estimate, because look-ups read many

    @property
    def bytes_used(self) -> int:
        """Memory used by the index."""
        return self._bytes

    def __len__(self) -> int:
        """Number of runs in the index."""
        return self._runs

    def keeps(self, backend: int) -> float:
        """The estimated cache size of ``backend``, in prompt bytes."""
        return self._estimate(backend).keeps

    def expect(self, backend: int, keeps_bytes: float) -> None:
        """Set the cache size that ``backend`` reports, in prompt bytes, above 0. Replies refine it from there.

        When the reported size changes, the estimate changes in proportion: usually the cache still has as many tokens,
        and only their average length in bytes has become better known.
        """
        estimate = self._estimate(backend)
        if estimate.reported == keeps_bytes:
            return
        estimate.keeps = keeps_bytes if estimate.reported is None else estimate.keeps * keeps_bytes / estimate.reported
        estimate.reported = keeps_bytes
        self._oldest[backend] = estimate.oldest()

    def forget(self, backend: int) -> None:
        """Empty the cache of ``backend``: it was restarted, or its number now belongs to another backend."""
        estimate = self._estimate(backend)
        estimate.clock += 1  # greater than the clock of every recorded run
        estimate.emptied_at = estimate.clock
        estimate.losses = 0
        self._oldest[backend] = estimate.oldest()

    def look_up(self, prompt: Prompt) -> Lookup:
        """Find which backends hold how much of ``prompt``."""
        chain = prompt.chain.tobytes()
        shards, oldest = self._shards, self._oldest
        path: list[tuple[_Run, int]] = []
        held: dict[int, int] = {}
        at, end = 0, len(chain)
        while at < end:
            key = hash(chain[: at + _HASH_BYTES])
            run = shards[key % len(shards)].get(key)
            if run is None:
                break
            known = run.hashes
            after = at + len(known)
            is_whole = chain.startswith(known, at)
            stop = after // _HASH_BYTES if is_whole else at // _HASH_BYTES + _blocks_alike(known, chain[at:after])
            path.append((run, stop))
            size = ENDS[stop - 1]
            for backend, read_at in run.holders.items():
                if read_at >= oldest[backend]:
                    held[backend] = size
            if not is_whole:
                break
            at = after
        return Lookup(prompt, chain, path, held)

    def record(self, lookup: Lookup, backend: int) -> Noted:
        """Record that the prompt of ``lookup`` is sent to ``backend``. Returns what was known before."""
        prompt, chain = lookup.prompt, lookup.chain
        estimate = self._estimate(backend)
        clock, oldest = estimate.clock, self._oldest[backend]
        held = at = 0
        ages = []
        for found, stop in lookup.path:
            run = found
            if stop * _HASH_BYTES < at + len(run.hashes):
                run = self._split(run, chain[: stop * _HASH_BYTES], at)
            read_at = run.holders.get(backend)
            if read_at is None:
                self._bytes += _HOLDER_BYTES
            else:
                ages.append((ENDS[stop - 1], clock - read_at))
                if read_at >= oldest:
                    held = ENDS[stop - 1]
            run.holders[backend] = clock
            self._renew(run)
            at = stop * _HASH_BYTES
        if at < len(chain):
            self._put(_Run(hash(chain[: at + _HASH_BYTES]), chain[at:], {backend: clock}))
        estimate.clock = clock + prompt.size - held
        self._oldest[backend] = estimate.oldest()
        while self._bytes > self._budget and self._runs:
            self._drop_one()
        return Noted(backend, prompt.size, held, ages)

    def correct(self, noted: Noted, prompt_tokens: int, cached_tokens: int) -> None:
        """Adjust the estimate to a reply: the engine had ``cached_tokens`` of the prompt's ``prompt_tokens`` cached.

        The whole prompt is cached now, so its own runs stay. But a run that was lost implies that all runs unused for
        as long are lost as well, and a run that was cached unexpectedly implies that the cache is larger than
        estimated. A single loss proves nothing, because it can have other causes: another request was still reading the
        prompt, or a slot was occupied.
        """
        if not noted.ages or prompt_tokens <= 0:
            return
        estimate = self._estimate(noted.backend)
        cached = noted.size * cached_tokens // prompt_tokens
        kept_age, start = -1, 0
        for end, age in noted.ages:
            if end <= cached * _SLACK:
                kept_age, start = age, end
                estimate.losses = 0
            elif (start + end) / 2 > cached * _SLACK + ENDS[0]:
                if age <= estimate.keeps:  # otherwise the loss was expected
                    estimate.losses += 1
                    estimate.keeps = _less(estimate.keeps, age, estimate.losses)
                break
        if kept_age > estimate.keeps:
            estimate.keeps = min(kept_age, 2 * estimate.keeps + ENDS[0])
        estimate.clock += max(0, noted.held - cached)  # uncached bytes that were expected to be cached
        self._oldest[noted.backend] = estimate.oldest()

    # --- the runs

    def _split(self, run: _Run, start: bytes, at: int) -> _Run:
        """Split ``run`` after the blocks ``start[at:]``, where ``start`` is the beginning of a prompt's chain.

        Returns its front part.
        """
        cut = len(start) - at
        front = _Run(run.key, run.hashes[:cut], run.holders.copy())
        self._put(front)
        self._put(_Run(hash(start + run.hashes[cut : cut + _HASH_BYTES]), run.hashes[cut:], run.holders))
        return front

    def _put(self, run: _Run) -> None:
        """Store ``run`` under its key, replacing any other run."""
        known = self._shards[run.key % len(self._shards)].pop(run.key, None)
        if known is not None:
            self._runs -= 1
            self._bytes -= _bytes_of(known)
        self._runs += 1
        self._bytes += _bytes_of(run)
        self._renew(run)

    def _renew(self, run: _Run) -> None:
        """Mark ``run`` as the most recently used one."""
        key = run.key
        at = key % len(self._shards)
        shard = self._shards[at]
        shard.pop(key, None)
        shard[key] = run
        table = shard.__sizeof__()
        if table != self._tables[at]:
            self._bytes += table - self._tables[at]
            self._tables[at] = table

    def _drop_one(self) -> None:
        shard = self._shards[self._hand]
        self._hand = (self._hand + 1) % len(self._shards)
        if shard:
            self._runs -= 1
            self._bytes -= _bytes_of(shard.pop(next(iter(shard))))

    def _estimate(self, backend: int) -> _CacheEstimate:
        while backend >= len(self._shelves):
            self._shelves.append(_CacheEstimate())
            self._oldest.append(self._shelves[-1].oldest())
        return self._shelves[backend]


def _less(keeps: float, lost_age: int, losses: int) -> float:
    """The lowered estimate for a cache that has lost a run of age ``lost_age``, after ``losses`` consecutive losses."""
    if lost_age > keeps / 2:
        return lost_age - 1  # least recently used runs are evicted first, so no older run is cached
    return keeps * (1 - min(losses / _DOUBT, 0.5))


def _bytes_of(run: _Run) -> int:
    return _RUN_BYTES + len(run.hashes) + _HOLDER_BYTES * len(run.holders)


def _blocks_alike(known: bytes, given: bytes) -> int:
    """The number of leading hashes that two runs share, at least one. If two hashes agree, so do all before them."""
    low, high = 1, min(len(known), len(given)) // _HASH_BYTES
    while low < high:
        middle = (low + high + 1) // 2
        if known.startswith(given[: middle * _HASH_BYTES]):
            low = middle
        else:
            high = middle - 1
    return low
