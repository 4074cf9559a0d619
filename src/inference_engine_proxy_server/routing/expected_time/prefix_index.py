"""Which backend holds which beginnings of prompts, as far as what was sent there tells.

The strategy: a radix tree over prompts' blocks, kept flat. A run is a stretch of blocks that no two prompts part in; it
is found by its first block's hash, which stands for all that comes before it, so a tree needs no links. A look-up steps
from run to run, and most prompts have two or three: what they share, and their own.

How long an engine keeps a run is not told by any. Each backend has a clock that advances with the bytes that are read
there anew, since room for them is taken from what was unused for longest; a run is held until the clock has gone on by
what the engine keeps, which starts as a guess and follows what replies say (:meth:`PrefixIndex.correct`).
"""

from __future__ import annotations

import msgspec

from inference_engine_proxy_server.requests.prompt import ENDS, Prompt

__all__ = ["Lookup", "Noted", "PrefixIndex"]

_USUALLY_KEPT = 1 << 20  # bytes, some 260,000 tokens: an engine on one or two GPUs, or llama.cpp's 8 GiB in the host
_HASH_BYTES = 8
# As a process grows by a full index: with what malloc rounds up and cannot use again. Tables are counted as they are.
_RUN_BYTES = 350
_HOLDER_BYTES = 88
_SHARD_BYTES = 1 << 20  # of the budget for each table: one of 2,000 runs grows in some 50 us, one of all in 10 ms
_SLACK = 1.1  # of what is reported: a token is not as long in one part of a prompt as in another
_DOUBT = 16  # one loss takes a 16th of what is thought to be kept, those that follow it at once more and more


class _Run(msgspec.Struct, gc=False):
    """Blocks that have always come together. ``holders``: backend -> its clock when it began to read them."""

    hashes: bytes
    holders: dict[int, int]


class Lookup(msgspec.Struct, gc=False):
    """What the index knows about a prompt. Valid until the next prompt is recorded.

    Attributes:
        prompt: the prompt.
        path: the runs that it begins with, each with the number of blocks up to its end.
        held: bytes of the prompt that each backend holds, for backends that hold any.
    """

    prompt: Prompt
    path: list[tuple[_Run, int]]
    held: dict[int, int]


class Noted(msgspec.Struct, gc=False):
    """What was thought of a backend when a prompt was sent there.

    Attributes:
        backend: its number.
        size: bytes of the prompt.
        held: how many of them it was thought to hold.
        ages: the runs that it ever had: where each ends, and how many bytes it has read since it had that.
    """

    backend: int
    size: int
    held: int
    ages: list[tuple[int, int]]


class _CacheEstimate(msgspec.Struct):
    """One backend: its clock, what it keeps by our estimate, what it told, since when it has forgotten nothing."""

    clock: int = 0
    keeps: float = float(_USUALLY_KEPT)
    told: float | None = None
    emptied_at: int = 0
    losses: int = 0

    def oldest(self) -> int:
        """The clock at which what was read is still there."""
        return int(max(self.emptied_at, self.clock - self.keeps))


class PrefixIndex:
    """Which backends hold which beginnings. Backends are small numbers, given by whoever uses it.

    Args:
        budget_bytes: the most memory that it takes; what was unused for longest goes first. At least 64 KiB.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget = budget_bytes
        count = max(1, budget_bytes // _SHARD_BYTES)
        self._shards: list[dict[int, _Run]] = [{} for _ in range(count)]  # each from the longest unused to the latest
        self._tables = [shard.__sizeof__() for shard in self._shards]
        self._bytes = sum(self._tables)
        self._runs = 0
        self._hand = 0  # the shard that gives up a run next
        self._shelves: list[_CacheEstimate] = []
        self._oldest: list[int] = []  # of each shelf, for who looks at many

    @property
    def bytes_used(self) -> int:
        """Memory that it takes."""
        return self._bytes

    def __len__(self) -> int:
        """Runs of blocks in it."""
        return self._runs

    def keeps(self, backend: int) -> float:
        """How many bytes of prompts ``backend`` keeps, by the present estimate."""
        return self._shelf(backend).keeps

    def expect(self, backend: int, keeps_bytes: float) -> None:
        """``backend`` tells that it keeps so much, which is above 0. What replies say goes on from there.

        Where it tells another size, what was learned stays the same part of it: mostly the tokens are as many, and
        their bytes have become better known.
        """
        shelf = self._shelf(backend)
        if shelf.told == keeps_bytes:
            return
        shelf.keeps = keeps_bytes if shelf.told is None else shelf.keeps * keeps_bytes / shelf.told
        shelf.told = keeps_bytes
        self._oldest[backend] = shelf.oldest()

    def forget(self, backend: int) -> None:
        """``backend`` holds nothing any more: it has been restarted, or its number is another's now."""
        shelf = self._shelf(backend)
        shelf.clock += 1  # above all that was noted
        shelf.emptied_at = shelf.clock
        shelf.losses = 0
        self._oldest[backend] = shelf.oldest()

    def look_up(self, prompt: Prompt) -> Lookup:
        """Find out which backends hold how much of ``prompt``."""
        held: dict[int, int] = {}
        oldest = self._oldest
        path = self._path(prompt)
        for run, stop in path:
            end = ENDS[stop - 1]
            held |= {backend: end for backend, read_at in run.holders.items() if read_at >= oldest[backend]}
        return Lookup(prompt, path, held)

    def record(self, lookup: Lookup, backend: int) -> Noted:
        """Record that the prompt of ``lookup`` is sent to ``backend``. Returns what was known before."""
        prompt = lookup.prompt
        shelf = self._shelf(backend)
        clock, oldest = shelf.clock, self._oldest[backend]
        held = at = 0
        ages = []
        for found, stop in lookup.path:
            run = found
            if stop - at < len(run.hashes) // _HASH_BYTES:
                run = self._split(prompt.chain[at], run, stop - at)
            read_at = run.holders.get(backend)
            if read_at is None:
                self._bytes += _HOLDER_BYTES
            else:
                ages.append((ENDS[stop - 1], clock - read_at))
                if read_at >= oldest:
                    held = ENDS[stop - 1]
            run.holders[backend] = clock
            self._renew(prompt.chain[at], run)
            at = stop
        if at < len(prompt.chain):
            self._put(prompt.chain[at], _Run(prompt.chain[at:].tobytes(), {backend: clock}))
        shelf.clock = clock + prompt.size - held
        self._oldest[backend] = shelf.oldest()
        while self._bytes > self._budget and self._runs:
            self._drop_one()
        return Noted(backend, prompt.size, held, ages)

    def correct(self, noted: Noted, prompt_tokens: int, cached_tokens: int) -> None:
        """The engine had ``cached_tokens`` of what was noted, and has all of its ``prompt_tokens`` now.

        So nothing of this prompt is to be forgotten; but what was lost tells that all that was unused for as long is
        lost as well, and what was not that more is kept than was thought. That less was there than it seems can
        have other reasons (another request was still reading it, a slot was taken), so one loss is no proof.
        """
        if not noted.ages or prompt_tokens <= 0:
            return
        shelf = self._shelf(noted.backend)
        cached = noted.size * cached_tokens // prompt_tokens
        kept_age, start = -1, 0
        for end, age in noted.ages:
            if end <= cached * _SLACK:
                kept_age, start = age, end
                shelf.losses = 0
            elif (start + end) / 2 > cached * _SLACK + ENDS[0]:
                if age <= shelf.keeps:  # else it was as we thought
                    shelf.losses += 1
                    shelf.keeps = _less(shelf.keeps, age, shelf.losses)
                break
        if kept_age > shelf.keeps:
            shelf.keeps = min(kept_age, 2 * shelf.keeps + ENDS[0])
        shelf.clock += max(0, noted.held - cached)  # so much more was read anew
        self._oldest[noted.backend] = shelf.oldest()

    # --- the runs

    def _path(self, prompt: Prompt) -> list[tuple[_Run, int]]:
        """The runs that ``prompt`` begins with, each with the number of its blocks up to where they agree."""
        chain = prompt.chain
        hashes = chain.tobytes()
        path = []
        at, count = 0, len(chain)
        while at < count:
            first = chain[at]
            run = self._shards[first % len(self._shards)].get(first)
            if run is None:
                break
            known = run.hashes
            rest = hashes[at * _HASH_BYTES : at * _HASH_BYTES + len(known)]
            if rest != known:
                path.append((run, at + _blocks_alike(known, rest)))
                break
            at += len(known) // _HASH_BYTES
            path.append((run, at))
        return path

    def _split(self, first: int, run: _Run, blocks: int) -> _Run:
        """Part ``run``, found by ``first``, after so many blocks. Returns its front part."""
        cut = blocks * _HASH_BYTES
        front = _Run(run.hashes[:cut], run.holders.copy())
        self._put(first, front)
        self._put(memoryview(run.hashes).cast("q")[blocks], _Run(run.hashes[cut:], run.holders))
        return front

    def _put(self, first: int, run: _Run) -> None:
        """Let ``run`` be found by ``first``; one that was is not any more."""
        at = first % len(self._shards)
        known = self._shards[at].pop(first, None)
        if known is not None:
            self._runs -= 1
            self._bytes -= _bytes_of(known)
        self._runs += 1
        self._bytes += _bytes_of(run)
        self._renew(first, run)

    def _renew(self, first: int, run: _Run) -> None:
        """``run`` is the latest to be used."""
        at = first % len(self._shards)
        shard = self._shards[at]
        shard.pop(first, None)
        shard[first] = run
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

    def _shelf(self, backend: int) -> _CacheEstimate:
        while backend >= len(self._shelves):
            self._shelves.append(_CacheEstimate())
            self._oldest.append(self._shelves[-1].oldest())
        return self._shelves[backend]


def _less(keeps: float, lost_age: int, losses: int) -> float:
    """What a backend keeps after all, if it did not keep what it had read so many bytes ago."""
    if lost_age > keeps / 2:
        return lost_age - 1  # what is unused for longest goes first, so nothing older is there
    return keeps * (1 - min(losses / _DOUBT, 0.5))


def _bytes_of(run: _Run) -> int:
    return _RUN_BYTES + len(run.hashes) + _HOLDER_BYTES * len(run.holders)


def _blocks_alike(known: bytes, given: bytes) -> int:
    """How many hashes two runs begin with alike, one at least: where one agrees, so do all before it."""
    low, high = 1, min(len(known), len(given)) // _HASH_BYTES
    while low < high:
        middle = (low + high + 1) // 2
        if known.startswith(given[: middle * _HASH_BYTES]):
            low = middle
        else:
            high = middle - 1
    return low
