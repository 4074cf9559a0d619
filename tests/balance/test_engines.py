"""The simulated engines delay requests as real ones do, and account for every token."""

from __future__ import annotations

from random import Random

import pytest

from balance.watched import Watched, fresh, sent
from simulation.batching import BatchingEngine, Speeds
from simulation.llamacpp_engine import RTX_4090_8B, LlamaCppEngine, LlamaCppSize
from simulation.requests import Segment
from simulation.virtual_loop import VirtualLoop, virtual_loop
from simulation.vllm_engine import TWO_H100_32B, VllmEngine, VllmSize

_PLAIN = Speeds(fixed=0.01, per_prompt_token=0.0001, per_sequence=0.001, per_context_token=0.0, tokens_a_step=1000)


def _engines(speeds: Speeds) -> list[BatchingEngine]:
    return [LlamaCppEngine(virtual_loop(), speeds), VllmEngine(virtual_loop(), speeds)]


@pytest.fixture(name="loop")
def _loop() -> VirtualLoop:
    return virtual_loop()


@pytest.mark.parametrize("engine", _engines(_PLAIN), ids=["llama.cpp", "vLLM"])
def test_a_single_request_takes_the_time_of_its_steps(engine: BatchingEngine) -> None:
    lone = sent(engine, 1.0, (fresh(500),), answer=11)

    engine.loop.run()

    assert lone.first_token_at == pytest.approx(1.0 + 0.01 + 500 * 0.0001)
    assert lone.done_at == pytest.approx(lone.first_token_at + 10 * (0.01 + 0.001))


@pytest.mark.parametrize("engine", _engines(_PLAIN), ids=["llama.cpp", "vLLM"])
def test_a_long_prompt_is_read_in_several_steps(engine: BatchingEngine) -> None:
    lone = sent(engine, 0.0, (fresh(2500),))

    engine.loop.run()

    assert lone.first_token_at == pytest.approx(3 * 0.01 + 2500 * 0.0001)


@pytest.mark.parametrize("engine", _engines(_PLAIN), ids=["llama.cpp", "vLLM"])
def test_one_requests_prompt_delays_anothers_tokens(engine: BatchingEngine) -> None:
    writing = sent(engine, 0.0, (fresh(100),), answer=101)
    alone = 0.02 + 100 * 0.011
    sent(engine, 0.5, (fresh(900),), answer=1)

    engine.loop.run()

    assert writing.done_at == pytest.approx(alone + 900 * 0.0001)


@pytest.mark.parametrize("engine", _engines(RTX_4090_8B), ids=["llama.cpp", "vLLM"])
def test_more_context_makes_tokens_slower(engine: BatchingEngine) -> None:
    long = sent(engine, 0.0, (fresh(20_000),), answer=100)
    short = sent(engine, 1000.0, (fresh(20),), answer=100)

    engine.loop.run()

    assert long.done_at - long.first_token_at > 1.2 * (short.done_at - short.first_token_at)


@pytest.mark.parametrize("engine", [*_engines(RTX_4090_8B), *_engines(TWO_H100_32B)])
def test_a_series_of_steps_takes_as_long_as_single_steps(engine: BatchingEngine) -> None:
    speeds = engine.speeds
    first = sent(engine, 0.0, (fresh(1000),), answer=500)
    second = sent(engine, 1.0, (fresh(30),), answer=1)

    engine.loop.run()

    context = 1000
    at = speeds.fixed + 1000 * speeds.per_prompt_token + speeds.per_context_token * context
    while at < 1.0:
        at += speeds.fixed + speeds.per_sequence + speeds.per_context_token * context
        context += 1
    read = speeds.fixed + speeds.per_sequence + 30 * speeds.per_prompt_token + speeds.per_context_token * (context + 30)
    assert second.first_token_at == pytest.approx(at + read)
    assert first.done_at > second.done_at


@pytest.mark.parametrize("slots", [1, 3])
def test_requests_get_slots_in_the_order_of_arrival(loop: VirtualLoop, slots: int) -> None:
    engine = LlamaCppEngine(loop, _PLAIN, LlamaCppSize(slots=slots))
    clients = [sent(engine, number / 1000, (fresh(100),)) for number in range(9)]

    loop.run(until=0.1)
    assert (engine.state().processing, engine.state().waiting) == (slots, 9 - slots)
    loop.run()

    begun = [client.first_token_at for client in clients]
    assert begun == sorted(begun)
    assert engine.most_waiting >= 9 - slots


def test_the_slot_with_the_longest_matching_prefix_is_reused(loop: VirtualLoop) -> None:
    engine = LlamaCppEngine(loop, _PLAIN)
    system, answer = fresh(1000), fresh(50)
    sent(engine, 0.0, (system, first := fresh(100)), answer)
    sent(engine, 5.0, (fresh(3000),))
    again = sent(engine, 10.0, (system, first, answer, fresh(20)))
    same = sent(engine, 20.0, (system, first))

    loop.run()

    assert again.cached == 1150
    assert same.cached == 1099, "the last token of a prompt is always read"


def test_busy_slots_share_no_cache(loop: VirtualLoop) -> None:
    engine = LlamaCppEngine(loop, _PLAIN)
    system = fresh(1000)
    both = [sent(engine, 0.0, (system, fresh(10))) for _ in range(2)]

    loop.run()

    assert [client.cached for client in both] == [0, 0]


def test_a_prompt_that_lost_its_slot_is_restored_from_memory(loop: VirtualLoop) -> None:
    engine = LlamaCppEngine(loop, _PLAIN, LlamaCppSize(slots=1))
    first, answer = fresh(2000), fresh(10)
    sent(engine, 0.0, (first,), answer)
    sent(engine, 10.0, (fresh(3000),))
    back = sent(engine, 20.0, (first, answer, fresh(10)))

    loop.run()

    assert back.cached == 2010


def test_the_prompt_store_evicts_the_oldest_prompt(loop: VirtualLoop) -> None:
    engine = LlamaCppEngine(loop, _PLAIN, LlamaCppSize(slots=1, stored_tokens=5000))
    first = fresh(2000)
    sent(engine, 0.0, (first,))
    for number in range(1, 4):
        sent(engine, 10.0 * number, (fresh(2400),))
    back = sent(engine, 100.0, (first, fresh(10)))

    loop.run()

    assert back.cached == 0


def test_full_blocks_are_shared_from_the_step_that_reads_them(loop: VirtualLoop) -> None:
    engine = VllmEngine(loop, _PLAIN)
    system = fresh(1003)
    first = sent(engine, 0.0, (system, fresh(100)))
    second = sent(engine, 0.05, (system, fresh(100)))

    loop.run()

    assert first.cached == 0
    assert second.cached == 1003 // 16 * 16


def test_the_next_turn_finds_the_whole_previous_turn_cached(loop: VirtualLoop) -> None:
    engine = VllmEngine(loop, _PLAIN)
    question, answer = fresh(333), fresh(44)
    sent(engine, 0.0, (question,), answer)
    following = sent(engine, 10.0, (question, answer, fresh(20)))

    loop.run()

    assert following.cached == (333 + 43) // 16 * 16, "an answer's last token was never read"


def test_the_least_recently_used_prompt_is_evicted_from_its_end(loop: VirtualLoop) -> None:
    engine = VllmEngine(loop, _PLAIN, VllmSize(blocks=100))
    old, new = fresh(640), fresh(640)
    sent(engine, 0.0, (old,))
    sent(engine, 10.0, (new,))
    kept = sent(engine, 20.0, (new,))
    cut = sent(engine, 30.0, (old,))

    loop.run()

    assert kept.cached == 624, "but for the block with the last token"
    assert 0 < cut.cached < 640


def test_a_sequence_waits_until_there_are_enough_pages(loop: VirtualLoop) -> None:
    engine = VllmEngine(loop, _PLAIN, VllmSize(blocks=100))
    first = sent(engine, 0.0, (fresh(1000),), answer=100)
    second = sent(engine, 0.1, (fresh(1000),))

    loop.run()

    assert second.first_token_at > first.done_at


@pytest.mark.parametrize("blocks", [300, 17_600])
def test_pages_are_all_accounted_for(loop: VirtualLoop, blocks: int) -> None:
    engine, random = VllmEngine(loop, TWO_H100_32B, VllmSize(places=16, blocks=blocks)), Random(1)
    shared = [fresh(random.randint(1, 700)) for _ in range(12)]
    clients = []
    for number in range(600):
        prompt = (*random.sample(shared, random.randint(0, 3)), fresh(random.randint(1, 900)))
        clients.append(sent(engine, number * 0.02, prompt, answer=random.randint(1, 300)))
        loop.at(number * 0.02, _check, engine)

    loop.run()

    assert all(client.usage is not None for client in clients)
    assert (engine.cache.private, engine.cache.pinned, engine.cache.use) == (0, 0, 0.0)
    assert 0 < engine.cache.shared <= blocks


@pytest.mark.parametrize("engine", _engines(TWO_H100_32B), ids=["llama.cpp", "vLLM"])
def test_every_token_is_read_or_generated_once(engine: BatchingEngine) -> None:
    random, clients = Random(2), list[Watched]()
    turns = [(fresh(500), fresh(random.randint(1, 2000)), fresh(random.randint(1, 50))) for _ in range(80)]
    for number, (system, question, answer) in enumerate(turns):
        clients.append(sent(engine, number * 0.1, (system, question), answer))
        clients.append(sent(engine, number * 0.1 + 30.0, (system, question, answer, fresh(40))))

    engine.loop.run()

    usages = [client.usage for client in clients if client.usage is not None]
    assert len(usages) == 160
    read = sum(usage.prompt_tokens - usage.cached_tokens for usage in usages)
    made = sum(usage.answer_tokens - 1 for usage in usages)  # the step that reads the prompt generates the first token
    assert engine.tokens == read + made


def test_prompts_are_read_again_after_the_cache_is_cleared(loop: VirtualLoop) -> None:
    for engine in (LlamaCppEngine(loop, _PLAIN), VllmEngine(loop, _PLAIN)):
        prompt = (Segment(-5, 500),)
        sent(engine, loop.time(), prompt)
        loop.run()
        engine.forget()
        again = sent(engine, loop.time(), prompt)
        loop.run()
        assert again.cached == 0


def _check(engine: VllmEngine) -> None:
    cache = engine.cache
    assert min(cache.private, cache.shared, cache.pinned) >= 0
    assert cache.pinned <= cache.shared
    assert cache.private + cache.shared <= cache.blocks


@pytest.mark.parametrize("engine", _engines(_PLAIN), ids=["llama.cpp", "vLLM"])
def test_a_killed_engine_loses_its_requests_and_its_cache(engine: BatchingEngine) -> None:
    system = Segment(-1, 320)
    early = sent(engine, 0.0, (system, fresh(32)), answer=2)
    broken = [sent(engine, 1.0, (system, fresh(32)), answer=1000) for _ in range(6)]
    engine.loop.at(2.0, engine.kill)
    late = sent(engine, 3.0, (system, fresh(32)), answer=2)

    engine.loop.run()

    assert early.done_at < 1.0
    assert [client.lost_at for client in broken] == [2.0] * 6
    assert [client.done_at for client in broken] == [-1.0] * 6
    assert late.done_at == pytest.approx(3.0 + early.done_at)
    assert late.cached == 0
    assert (engine.processing, len(engine.waiting)) == (0, 0)
