"""Emulated engines take the time of the cost model, reuse prefixes, and are engines to the proxy."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from balance.watched import Watched, fresh, sent
from benchmarks.emulated import FAST, KINDS, asked, emulated, events, spec, words
from emulation.calibration import TINY
from emulation.clock import RealTime
from emulation.counters import prompt_tokens
from emulation.engine import Intake
from emulation.fleet import running_fleet
from simulation.batching import BatchingEngine, Speeds
from simulation.events import Event
from simulation.virtual_loop import VirtualLoop, virtual_loop
from support.http_client import Call, send
from support.live_proxy import live_proxy
from support.llama_server import LlamaServer
from support.tiny_gguf import ModelShape, write_tiny_gguf
from support.waiting import eventually

CHAT = "/v1/chat/completions"
SLOW = Speeds(fixed=0.05, per_prompt_token=1e-4, per_sequence=0.001, per_context_token=0.0, tokens_a_step=2048)


class Late(VirtualLoop):
    """A loop whose timers always run late."""

    def at(self, when: float, call: Callable[..., object], *args: Any) -> Event:
        return super().at(when + 0.3, call, *args)


def submitted(engine: BatchingEngine, every_seconds: float) -> list[Watched]:
    """Twelve requests of different lengths, scheduled one after the other."""
    return [
        sent(engine, every_seconds * number, (fresh(100 + 300 * number),), answer=5 + 7 * number)
        for number in range(12)
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make_loop", [VirtualLoop, Late])
def test_real_time_gives_the_times_of_virtual_time(kind: str, make_loop: Callable[[], VirtualLoop]) -> None:
    loop = make_loop()
    loop.run(until=12.34)
    virtual = spec(kind, SLOW).engine(virtual_loop())
    real = spec(kind, SLOW).engine(RealTime(loop), reported_steps=4)
    expected, found = submitted(virtual, 0.2), submitted(real, 0.2)

    virtual.loop.run()
    loop.run()

    assert [client.done_at for client in expected] == sorted(client.done_at for client in expected)
    assert [client.first_token_at for client in found] == pytest.approx([each.first_token_at for each in expected])
    assert [client.done_at for client in found] == pytest.approx([client.done_at for client in expected])


def test_a_late_clock_counts_its_delays() -> None:
    loop = Late()  # type: ignore[abstract]
    clock = RealTime(loop)
    clock.at(1.0, lambda: None)

    loop.run()

    assert sum(clock.delays.values()) == 1
    assert 299 <= max(clock.delays) <= 300


def test_progress_is_reported_after_each_number_of_steps() -> None:
    engine = spec("vllm", SLOW).engine(virtual_loop(), reported_steps=4)
    client = sent(engine, 0.0, (fresh(100),), answer=11)

    engine.loop.run()

    assert [tokens for _, tokens in client.wrote_at] == [4, 8]
    step = SLOW.fixed + SLOW.per_sequence
    assert [at for at, _ in client.wrote_at] == pytest.approx(
        [client.first_token_at + 3 * step, client.first_token_at + 7 * step]
    )


def test_reading_takes_longer_after_a_longer_context() -> None:
    attentive = Speeds(0.01, 1e-4, 0.0, 0.0, 1000, per_attended_token=1e-7)
    engine = spec("vllm", attentive).engine(virtual_loop())
    client = sent(engine, 0.0, (fresh(1500),))

    engine.loop.run()

    assert client.first_token_at == pytest.approx(2 * 0.01 + 1500 * 1e-4 + 1500 * 1500 / 2 * 1e-7)
    assert attentive.slowed(3.0).per_attended_token == pytest.approx(3e-7)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_stream_takes_the_time_of_the_cost_model(kind: str) -> None:
    read = 0.05 + (2000 + 8) * 1e-4  # 8: the chat template
    written = 8 * (0.05 + 0.001)
    async with emulated(kind, SLOW) as engine:
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with Call(engine.url, CHAT, asked(words(2000), tokens=9, stream=True)) as call:
            call.send()
            await call.head()
            first = await call.event()
            first_at = loop.time() - began
            rest = (await call.reply()).body
        ended_at = loop.time() - began
        counts = engine.engine.counts

    assert events(first)
    assert rest.endswith(b"data: [DONE]\n\n")
    assert first_at >= read
    assert ended_at >= read + written
    assert (counts.read_seconds, counts.written_seconds) == pytest.approx((read, written))


async def test_an_intake_delays_requests() -> None:
    intake = Intake(0.1, 0.0001)
    async with emulated("vllm", intake=intake) as engine:
        began = asyncio.get_running_loop().time()
        await send(engine.url, CHAT, asked(words(1000)))
        took = asyncio.get_running_loop().time() - began

    assert took >= 0.1 + 1008 * 0.0001


@pytest.mark.parametrize(("kind", "block"), [("llama.cpp", 1), ("vllm", 16)])
async def test_the_next_turn_finds_the_previous_turn_cached(kind: str, block: int) -> None:
    async with emulated(kind) as engine:
        first = (await send(engine.url, CHAT, asked(words(100), tokens=30))).json
        text = first["choices"][0]["message"]["content"]
        second = (await send(engine.url, CHAT, asked(words(100), text, words(20, " ber")))).json
        [counted] = await asyncio.to_thread(prompt_tokens, [engine.port])

    usages = [answer["usage"] for answer in (first, second)]
    known = usages[0]["prompt_tokens"] + (30 if kind == "llama.cpp" else 29)  # vLLM's last token was never read
    cached = [usage["prompt_tokens_details"]["cached_tokens"] for usage in usages]
    assert cached == [0, known // block * block]
    assert counted.cached == cached[1]
    assert counted.read == sum(usage["prompt_tokens"] for usage in usages) - cached[1]


async def test_another_text_of_the_same_length_is_not_cached() -> None:
    async with emulated("llama.cpp") as engine:
        await send(engine.url, CHAT, asked(words(100)))
        other = (await send(engine.url, CHAT, asked(words(100, " ber")))).json

    assert other["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


async def test_prompts_have_as_many_tokens_as_with_a_real_model(tmp_path: Path) -> None:
    model = write_tiny_gguf(tmp_path / "words.gguf", ModelShape(only_words=True))
    with LlamaServer(model) as server:
        first = (await send(server.url, CHAT, asked(words(30), tokens=25))).json
        text = first["choices"][0]["message"]["content"]
        body = asked(words(30), text, words(9), tokens=5)
        body["messages"].insert(0, {"role": "system", "content": words(17)})
        real = [first, (await send(server.url, CHAT, body)).json]
    async with emulated("llama.cpp", template=TINY) as engine:
        emulations = [(await send(engine.url, CHAT, each)).json for each in (asked(words(30), tokens=25), body)]

    assert len(text) == 4 * 25
    assert [answer["usage"]["prompt_tokens"] for answer in emulations] == [
        answer["usage"]["prompt_tokens"] for answer in real
    ]


@pytest.mark.parametrize(("kind", "name"), [("llama.cpp", "llamacpp"), ("vllm", "vllm")])
async def test_the_proxy_finds_the_engine_and_its_load(kind: str, name: str) -> None:
    endless = asked(words(10), tokens=4000, stream=True)
    async with emulated(kind, SLOW) as engine, live_proxy(engine.url, refresh_seconds=0.1) as proxy:
        async with AsyncExitStack() as clients:
            for _ in range(3):
                (await clients.enter_async_context(Call(engine.url, CHAT, endless))).send()

            async def is_loaded() -> bool:
                backend = (await proxy.details())[engine.url]
                return (backend["processing"], backend["waiting"], backend["slots"]) == (2, 1, 2)

            await eventually(is_loaded)
            details = (await proxy.details())[engine.url]

    assert details["metrics"][f"{name}:prompt_tokens_total"] > 0
    assert details["state"] == "up"


@pytest.mark.parametrize("kind", KINDS)
async def test_the_proxy_passes_its_answers_on(kind: str) -> None:
    async with emulated(kind) as engine, live_proxy(engine.url) as proxy:
        whole = (await proxy.post(CHAT, asked("hi", tokens=40))).json
        stream = await proxy.post(CHAT, asked("hi", tokens=40, stream=True))

    assert len(whole["choices"][0]["message"]["content"]) == 4 * 40
    pieces = [event["choices"][0]["delta"].get("content") or "" for event in events(stream.body)[:-1]]
    assert len("".join(pieces)) == 4 * 40


async def test_requests_beyond_its_slots_wait_for_their_turn() -> None:
    async with emulated("llama.cpp", FAST) as engine:
        answers = await asyncio.gather(*(send(engine.url, CHAT, asked(words(50))) for _ in range(9)))

    assert [answer.status for answer in answers] == [200] * 9
    assert engine.engine.model.most_waiting >= 5


async def test_an_absent_engine_finishes_its_requests_and_comes_back_with_an_empty_cache() -> None:
    plan = [spec("llama.cpp", SLOW)]
    with running_fleet(plan, "m") as fleet:
        url = f"http://127.0.0.1:{fleet.ports[0]}"
        async with Call(url, CHAT, asked(words(100), tokens=5, stream=True)) as call:
            call.send()
            await call.head()
            await asyncio.to_thread(fleet.leave, 0)
            with pytest.raises(ConnectionRefusedError):
                await send(url, "/health")
            rest = (await call.reply()).body
        await asyncio.to_thread(fleet.come_back, 0)
        again = (await send(url, CHAT, asked(words(100), tokens=5))).json

    assert rest.endswith(b"data: [DONE]\n\n")
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


def test_a_fleet_reports_its_cpu_time_and_delays() -> None:
    with running_fleet([spec("vllm"), spec("vllm")], "m") as fleet:
        assert len(set(fleet.ports)) == 2
        report = fleet.report()

    assert 0 < report.cpu_seconds < 60
    assert report.late_ms(0.99) == 0.0, "nothing has run yet"


def test_a_real_engine_runs_on_its_core_only(tiny_model: Path) -> None:
    core = max(os.sched_getaffinity(0))
    with LlamaServer(tiny_model, "--core", str(core)) as server:
        threads = [int(thread.name) for thread in Path(f"/proc/{server.pid}/task").iterdir()]
        affinities = {tuple(os.sched_getaffinity(thread)) for thread in threads}

    assert len(threads) > 1
    assert affinities == {(core,)}
