from __future__ import annotations

import gc
import json
import math
import tracemalloc
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine_proxy_server.requests.prompt import ENDS, Prompt, read_prompt
from inference_engine_proxy_server.requests.token_sizes import USUAL_BYTES_A_TOKEN, TokenSizes
from inference_engine_proxy_server.routing.expected_time.prefix_index import Noted, PrefixIndex

ROOMY = 8 << 20
KIB = 1024


def prompt_of(*parts: str) -> Prompt:
    return read_prompt(b"/", "/", b"", json.dumps({"model": "tiny", "prompt": "".join(parts)}).encode(), TokenSizes())


def blocks_of(letters: str) -> Prompt:
    """A prompt with one full block per letter."""
    prompt = Prompt("tiny", len(letters) * 512, USUAL_BYTES_A_TOKEN)
    prompt.chain = array("q", map(hash, letters))
    return prompt


def held(index: PrefixIndex, prompt: Prompt) -> dict[int, int]:
    return index.look_up(prompt).held


def record(index: PrefixIndex, prompt: Prompt, backend: int) -> Noted:
    return index.record(index.look_up(prompt), backend)


def whole(prompt: Prompt) -> int:
    return ENDS[len(prompt.chain) - 1]


def alike(one: str, other: str) -> int:
    """Total bytes of the leading blocks that two prompts share."""
    count = 0
    for mine, theirs in zip(one, other, strict=False):
        if mine != theirs:
            break
        count += 1
    return ENDS[count - 1] if count else 0


# --- cached prefixes


def test_only_the_backend_that_got_a_prompt_holds_it() -> None:
    index = PrefixIndex(ROOMY)
    prompt = prompt_of("a" * 5000)
    assert held(index, prompt) == {}
    record(index, prompt, 3)
    assert held(index, prompt) == {3: whole(prompt)}
    assert held(index, prompt_of("b" * 5000)) == {}


def test_each_backend_holds_the_longest_prefix_sent_there() -> None:
    index = PrefixIndex(ROOMY)
    for letters, backend in (("abcdef", 0), ("abcxyz", 1), ("abcxq", 2), ("axyz", 7), ("b", 9), ("ab", 11)):
        record(index, blocks_of(letters), backend)
    assert held(index, blocks_of("abcxyzzz")) == {0: 1536, 1: 3072, 2: 2048, 7: 512, 11: 1024}
    assert held(index, blocks_of("ab")) == {0: 1024, 1: 1024, 2: 1024, 7: 512, 11: 1024}


def test_the_earlier_part_of_a_grown_conversation_is_held() -> None:
    index = PrefixIndex(ROOMY)
    before = prompt_of("a" * 3000)
    record(index, before, 0)
    assert held(index, prompt_of("a" * 3000, "b" * 2000)) == {0: whole(before)}


def test_a_prompt_shorter_than_a_block_is_not_held_but_takes_up_cache() -> None:
    index = PrefixIndex(ROOMY)
    index.expect(0, 10_000)
    record(index, blocks_of("a"), 0)
    assert held(index, prompt_of("hi")) == {}
    for _ in range(100):
        record(index, prompt_of("x" * 100), 0)
    assert held(index, blocks_of("a")) == {}


words = st.text("ab", max_size=9) | st.text("abc", max_size=40)
sent = st.lists(st.tuples(words, st.integers(0, 3)), max_size=25)


@given(sent, words)
def test_held_is_the_longest_common_prefix_with_any_prompt_sent(sent: list[tuple[str, int]], asked: str) -> None:
    index = PrefixIndex(ROOMY)
    longest = dict.fromkeys(range(4), 0)
    for backend in longest:
        index.expect(backend, math.inf)
    for letters, backend in sent:
        record(index, blocks_of(letters), backend)
        longest[backend] = max(longest[backend], alike(letters, asked))
    assert held(index, blocks_of(asked)) == {backend: held for backend, held in longest.items() if held}


@given(sent, words, st.integers(1, 20_000), st.sampled_from([0, 3000, 5000]))
def test_held_never_exceeds_the_common_prefix_with_prompts_sent(
    sent: list[tuple[str, int]], asked: str, keeps: int, budget: int
) -> None:
    index = PrefixIndex(budget)
    index.expect(0, keeps)
    longest = dict.fromkeys(range(4), 0)
    for letters, backend in sent:
        noted = record(index, blocks_of(letters), backend)
        index.correct(noted, 1000, 300 * backend)
        assert index.bytes_used <= budget or not len(index)
        longest[backend] = max(longest[backend], alike(letters, asked))
    for backend, size in held(index, blocks_of(asked)).items():
        assert 0 < size <= longest[backend]


def test_recording_a_prompt_returns_the_expectation_before_it() -> None:
    index = PrefixIndex(ROOMY)
    record(index, blocks_of("aaaa"), 0)
    record(index, blocks_of("zzzzzz"), 0)
    noted = record(index, blocks_of("aaaabb"), 0)
    assert (noted.backend, noted.size, noted.held) == (0, 3072, 2048)
    assert noted.ages == [(2048, 10 * 512)]
    assert record(index, blocks_of("aaaabb"), 0).held == 3072
    assert record(index, blocks_of("aaaabb"), 1).ages == []


# --- memory


def test_the_index_never_exceeds_its_budget() -> None:
    """Measured with tracemalloc, with many prompts of alternating long and short runs."""
    budget = 1 << 20
    tracemalloc.start()
    try:
        start = tracemalloc.get_traced_memory()[0]
        index = PrefixIndex(budget)
        most = 0
        for at in range(12_000):
            length = (600, 1500, 60_000)[at // 1000 % 3]
            shared = "s" * (2000 if at % 2 else 0)
            record(index, prompt_of(shared, f"{at} ", "x" * length), at % 200)
            if at % 100 == 0:
                taken = tracemalloc.get_traced_memory()[0] - start
                most = max(most, taken)
                assert index.bytes_used <= budget
                assert taken <= index.bytes_used + 16 * KIB + 300 * 200  # plus the cache estimates of 200 backends
    finally:
        tracemalloc.stop()
    assert 0.6 * budget < most <= budget + 60 * KIB
    assert len(index) > 500


def test_memory_for_many_holders_is_counted() -> None:
    tracemalloc.start()
    try:
        start = tracemalloc.get_traced_memory()[0]
        index = PrefixIndex(ROOMY)
        for at in range(100):
            for backend in range(at, 120):
                record(index, blocks_of("abcdefgh"[: at % 8 + 1] + f"{at}"), backend)
        taken = tracemalloc.get_traced_memory()[0] - start
        assert 0.5 * index.bytes_used < taken <= index.bytes_used + 300 * 120
    finally:
        tracemalloc.stop()


def test_memory_of_a_split_run_is_counted_once() -> None:
    index, together = PrefixIndex(ROOMY), PrefixIndex(ROOMY)
    lengths = range(2, 100)
    for length in reversed(lengths):
        record(index, blocks_of("a" * length + f"{length:03}"), 0)
    for length in lengths:
        record(together, blocks_of("a" * length + f"{length:03}"), 0)
    assert len(index) == len(together)
    assert index.bytes_used == pytest.approx(together.bytes_used, rel=0.1)  # table growth depends on the order


def test_the_least_recently_used_runs_are_dropped_first() -> None:
    index = PrefixIndex(64 * KIB)
    kept, lost = prompt_of("kept" * 500), prompt_of("lost" * 500)
    record(index, kept, 0)
    record(index, lost, 0)
    for at in range(1000):
        record(index, prompt_of(f"{at} " * 500), 1)
        if at % 20 == 0:
            record(index, kept, 2)
    assert held(index, kept) == {0: whole(kept), 2: whole(kept)}
    assert held(index, lost) == {}


def test_a_shared_prefix_outlives_its_continuations() -> None:
    index = PrefixIndex(64 * KIB)
    for at in range(1000):
        record(index, prompt_of("shared" * 500, f"{at} " * 500), 0)
    assert held(index, prompt_of("shared" * 500))[0] >= 2560
    assert held(index, prompt_of("shared" * 500, "0 " * 500))[0] <= 3072


def test_the_index_adds_hardly_any_objects_for_the_garbage_collector() -> None:
    index = PrefixIndex(ROOMY)
    gc.collect()
    before = len(gc.get_objects())
    for at in range(2000):
        record(index, prompt_of("shared" * 500, f"{at} " * 500), at % 10)
    gc.collect()
    assert len(index) > 2000
    assert len(gc.get_objects()) - before < 100


# --- cache size


def test_prompts_are_held_until_the_reported_cache_size_has_been_read() -> None:
    index = PrefixIndex(ROOMY)
    index.expect(0, 10 * 512)
    record(index, blocks_of("aaaa"), 0)
    record(index, blocks_of("bbbb"), 0)
    assert held(index, blocks_of("aaaa")) == {0: 2048}
    record(index, blocks_of("ccc"), 0)
    assert held(index, blocks_of("aaaa")) == {}
    assert held(index, blocks_of("bbbb")) == {0: 2048}


def test_a_reused_prompt_stays_cached_and_takes_up_no_more_cache() -> None:
    index = PrefixIndex(ROOMY)
    index.expect(0, 10 * 512)
    record(index, blocks_of("aaaa"), 0)
    for _ in range(9):
        record(index, blocks_of("bbbb"), 0)
    assert held(index, blocks_of("aaaa")) == {0: 2048}
    record(index, blocks_of("aaaa"), 0)
    record(index, blocks_of("cccc"), 0)
    assert held(index, blocks_of("aaaa")) == {0: 2048}


def test_each_backend_has_its_own_clock() -> None:
    index = PrefixIndex(ROOMY)
    for backend in (0, 1):
        index.expect(backend, 4 * 512)
        record(index, blocks_of("aa"), backend)
    record(index, blocks_of("bbbbb"), 0)
    assert held(index, blocks_of("aa")) == {1: 1024}


def test_a_forgotten_backend_holds_nothing_and_its_number_can_be_reused() -> None:
    index = PrefixIndex(ROOMY)
    record(index, blocks_of("aaa"), 0)
    record(index, blocks_of("aaa"), 0)
    record(index, blocks_of("aaa"), 1)
    index.forget(0)
    assert held(index, blocks_of("aaa")) == {1: 1536}
    record(index, blocks_of("a"), 0)
    assert held(index, blocks_of("aaa")) == {0: 512, 1: 1536}
    index.forget(7)
    assert held(index, blocks_of("aaa")) == {0: 512, 1: 1536}


def test_a_repeated_report_of_the_cache_size_keeps_the_learned_estimate() -> None:
    index = PrefixIndex(ROOMY)
    index.expect(0, 100_000)
    record(index, blocks_of("a" * 16), 0)
    record(index, blocks_of("b" * 100), 0)
    index.correct(record(index, blocks_of("a" * 16), 0), 2000, 0)
    learned = index.keeps(0)
    assert learned < 100_000
    index.expect(0, 100_000)
    assert index.keeps(0) == learned
    index.expect(0, 50_000)
    assert index.keeps(0) == learned / 2


# --- learning from replies


class Engine:
    """An LRU prefix cache of ``blocks`` blocks that reports its cached tokens."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.order: dict[str, None] = {}  # prefixes, one per cached block, the most recently used last

    def read(self, letters: str) -> int:
        """The number of cached tokens, at 128 per block."""
        prefixes = [letters[: at + 1] for at in range(len(letters))]
        reused = 0
        for prefix in prefixes:
            if prefix not in self.order:
                break
            reused += 1
        for prefix in reversed(prefixes):
            self.order.pop(prefix, None)
            self.order[prefix] = None
        while len(self.order) > self.blocks:
            del self.order[next(iter(self.order))]
        return reused * 128


@pytest.mark.parametrize("blocks", [60, 400, 8000])
def test_the_estimate_converges_to_the_engines_real_cache_size(blocks: int) -> None:
    """Starting from a guess of 2,048 blocks, with prompts that recur after shorter and longer times."""
    index, engine = PrefixIndex(ROOMY), Engine(blocks)
    predicted = real = wrong = 0
    for at in range(6000):
        group = at * 7919 % (11, 211, 1009)[at % 3]
        letters = f"{at % 3}{group:04}" + "x" * 7
        prompt = blocks_of(letters)
        noted = record(index, prompt, 0)
        cached = engine.read(letters)
        index.correct(noted, len(letters) * 128, cached)
        if at > 3000:
            predicted += noted.held
            real += cached * 4
            wrong += abs(noted.held - cached * 4)
    assert wrong < 0.15 * real
    assert predicted == pytest.approx(real, rel=0.15)


def test_an_engine_that_reuses_nothing_is_soon_expected_to_hold_nothing() -> None:
    index = PrefixIndex(ROOMY)
    prompt = blocks_of("a" * 16)
    for _ in range(30):
        index.correct(record(index, prompt, 0), 2000, 0)
    assert held(index, prompt) == {}


def test_one_loss_barely_lowers_the_estimate() -> None:
    """Another request may still have been reading the prompt."""
    index = PrefixIndex(ROOMY)
    other = blocks_of("b" * 40)
    record(index, other, 0)
    record(index, blocks_of("a" * 16), 0)
    index.correct(record(index, blocks_of("a" * 16), 0), 2000, 0)
    assert index.keeps(0) > 0.9 * PrefixIndex(ROOMY).keeps(0)
    assert held(index, other) == {0: whole(other)}


def test_consecutive_losses_weigh_more_and_more_until_a_hit() -> None:
    index = PrefixIndex(ROOMY)
    prompt = blocks_of("a" * 16)
    record(index, prompt, 0)
    factors = []
    for cached in (0, 0, 0, 2000, 0):
        before = index.keeps(0)
        index.correct(record(index, prompt, 0), 2000, cached)
        factors.append(index.keeps(0) / before)
    assert factors[0] > factors[1] > factors[2]
    assert factors[3] == 1
    assert factors[4] == pytest.approx(factors[0])


def test_losing_an_old_run_implies_that_all_older_runs_are_lost() -> None:
    index = PrefixIndex(ROOMY)
    index.expect(0, 100 * 512)
    record(index, blocks_of("o" * 10), 0)
    record(index, blocks_of("a" * 10), 0)
    record(index, blocks_of("b" * 30), 0)
    record(index, blocks_of("c" * 30), 0)
    index.correct(record(index, blocks_of("a" * 10), 0), 1280, 0)
    assert index.keeps(0) == 70 * 512 - 1
    assert held(index, blocks_of("o" * 10)) == {}
    assert held(index, blocks_of("c" * 30))
    assert held(index, blocks_of("a" * 10))  # just read, and therefore cached


def test_an_unexpected_hit_raises_the_estimate() -> None:
    index = PrefixIndex(ROOMY)
    index.expect(0, 20 * 512)
    record(index, blocks_of("a" * 10), 0)
    record(index, blocks_of("b" * 16), 0)
    assert held(index, blocks_of("a" * 10)) == {}
    index.correct(record(index, blocks_of("a" * 10), 0), 1280, 1279)
    assert index.keeps(0) == 26 * 512
    record(index, blocks_of("c" * 200), 0)
    index.correct(record(index, blocks_of("a" * 10), 0), 1280, 1279)
    assert 26 * 512 < index.keeps(0) < 60 * 512  # one report does not raise the estimate all the way


def test_only_the_lost_run_lowers_the_estimate() -> None:
    index = PrefixIndex(ROOMY)
    record(index, blocks_of("sss"), 0)
    record(index, blocks_of("sss" + "a" * 20), 0)
    for at in range(20):
        record(index, blocks_of("sss" + f"{at:02}" + "b" * 95), 0)
    noted = record(index, blocks_of("sss" + "a" * 20), 0)
    assert [end for end, _ in noted.ages] == [1536, ENDS[22]]
    old = noted.ages[-1][1]
    index.correct(noted, 2300, 300)
    assert index.keeps(0) == old - 1


@pytest.mark.parametrize(("tokens", "cached"), [(0, 0), (-1, 5)])
def test_a_report_without_tokens_changes_nothing(tokens: int, cached: int) -> None:
    index = PrefixIndex(ROOMY)
    record(index, blocks_of("aaaa"), 0)
    index.correct(record(index, blocks_of("aaaa"), 0), tokens, cached)
    assert index.keeps(0) == PrefixIndex(ROOMY).keeps(0)
