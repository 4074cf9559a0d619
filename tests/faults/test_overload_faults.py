"""Too many requests or bodies, too few files or ports, too little memory or CPU time."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from faults.conftest import CHAT, LATE_LOOP_SECONDS
from inference_engine_proxy_server.processes.host import raise_file_limit
from support.engine import Answer, Engine, fails_with
from support.fakes.engine import EngineConnection, http_reply
from support.fakes.front import Client, until
from support.fleet import Fleet
from support.http_client import Call, Reply, chat, send
from support.program import Proxy, fresh_program, program, started
from support.running_proxy import RunningProxy
from support.waiting import eventually

MEBIBYTE = 1 << 20
BODY = json.dumps(chat()).encode()
CHAT_REQUEST = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(BODY)}\r\n\r\n".encode() + BODY
NEVER_BUSY = {"max_allowed_request_queue": 1_000_000, "max_allowed_deferred": 1_000_000}


def answers_after(seconds: float) -> Answer:
    """Answers after ``seconds``."""

    async def answer(connection: EngineConnection) -> None:
        await asyncio.sleep(seconds)
        connection.send(http_reply())

    return answer


class Gate:
    """An answer that waits until the gate is opened."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()

    async def __call__(self, connection: EngineConnection) -> None:
        await self.opened.wait()
        connection.send(http_reply())


@dataclass(frozen=True)
class Answered:
    """A reply, with the times of its request and its end, in seconds since the first request was due."""

    reply: Reply
    sent_at: float
    at: float

    @property
    def seconds(self) -> float:
        return self.at - self.sent_at


async def arrivals(proxy: RunningProxy, per_second: float, seconds: float) -> list[Answered]:
    """Send requests at a constant rate, whether or not earlier ones have been answered."""
    began = time.monotonic()
    answered: list[Answered] = []

    async def one() -> None:
        sent_at = time.monotonic() - began
        reply = await proxy.post()
        answered.append(Answered(reply, sent_at, time.monotonic() - began))

    async with asyncio.TaskGroup() as group:
        for number in range(int(per_second * seconds)):
            await asyncio.sleep(max(0.0, began + number / per_second - time.monotonic()))
            group.create_task(one())
    return answered


def code(reply: Reply) -> str:
    return str(reply.json["error"]["code"])


async def is_waiting(proxy: RunningProxy, count: int) -> bool:
    return await proxy.metric("queue_requests") == count


# --- too many requests


SLOTS, SERVICE_SECONDS, WAIT_SECONDS = 16, 0.2, 1.0


@pytest.mark.slow_faults
@pytest.mark.parametrize("seconds", [1.5, 60])
async def test_ov01_excess_load_is_refused_at_once_and_the_rest_served_without_delay(
    tmp_path: Path, seconds: float
) -> None:
    capacity = SLOTS / SERVICE_SECONDS
    async with Engine(answers_after(SERVICE_SECONDS)) as engine:
        engine.slots = SLOTS
        settings = {
            "BACKEND_QUEUE_ALLOWANCE": "0",
            "MAX_QUEUED_REQUESTS": "32",
            "QUEUE_TIMEOUT_SECONDS": str(WAIT_SECONDS),
        }
        async with program(tmp_path, engine.url, **settings, MAX_ALLOWED_REQUEST_QUEUE="1000") as proxy:
            await arrivals(proxy, capacity, 0.5)
            at_first = resident_bytes(proxy)
            answered = await arrivals(proxy, 3 * capacity, seconds)
            assert resident_bytes(proxy) - at_first < 8 * MEBIBYTE
            await eventually(proxy.is_at_rest)

    served = [one for one in answered if one.reply.status == 200]
    refused = [one for one in answered if one.reply.status != 200]
    assert sum(one.at <= seconds for one in served) >= 0.9 * capacity * (seconds - SERVICE_SECONDS)
    assert max(one.seconds for one in served) < WAIT_SECONDS + SERVICE_SECONDS + 0.5
    assert {(one.reply.status, code(one.reply)) for one in refused} <= {(429, "queue_full"), (503, "queue_timeout")}
    assert all(1 <= int(one.reply.headers["retry-after"]) <= 120 for one in refused)
    assert statistics.median(one.seconds for one in refused if one.reply.status == 429) < 0.01
    assert len(engine.served) - len(served) == capacity * 0.5


async def test_ov02_queue_is_first_come_first_served_skips_disconnected_clients_and_refuses_when_full(
    fleet: Fleet,
) -> None:
    gate = Gate()
    engine = await fleet.engine(gate)
    engine.slots = 1
    proxy = await fleet.proxy(engine, backend_queue_allowance=0, max_queued_requests=3)
    async with AsyncExitStack() as stack:
        calls = [
            await stack.enter_async_context(Call(proxy.url, CHAT, chat(user=f"number-{number}"))) for number in range(5)
        ]
        calls[0].send()
        await eventually(lambda: len(engine.served) == 1)
        for place, call in enumerate(calls[1:4], 1):
            call.send()
            await eventually(functools.partial(is_waiting, proxy, place))

        full = await proxy.post()
        assert (full.status, code(full)) == (429, "queue_full")
        assert int(full.headers["retry-after"]) >= 1
        assert await proxy.metric("queue_refusals_total", reason="full") == 1

        await calls[2].reset()
        await eventually(lambda: is_waiting(proxy, 2))
        calls[4].send()
        await eventually(lambda: is_waiting(proxy, 3))
        gate.opened.set()
        assert [await calls[number].head() for number in (0, 1, 3, 4)] == [200] * 4
    order = [number for request in engine.served for number in range(5) if b"number-%d" % number in request]
    assert order == [0, 1, 3, 4]


@pytest.mark.parametrize("slots", [100, None], ids=["100 slots each", "any number"])
async def test_ov03_burst_within_one_poll_is_spread_evenly_and_exceeds_no_capacity(
    fleet: Fleet, slots: int | None
) -> None:
    raise_file_limit()
    gate = Gate()
    engines = [await fleet.engine(gate) for _ in range(4)]
    for engine in engines:
        engine.slots = slots
    proxy = await fleet.proxy(*engines, backend_queue_allowance=0, **NEVER_BUSY)
    placed = 500 if slots is None else 4 * slots
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(proxy.post()) for _ in range(500)]
        await eventually(lambda: sum(len(engine.served) for engine in engines) == placed)
        await eventually(lambda: is_waiting(proxy, 500 - placed))
        shares = [len(engine.served) for engine in engines]
        gate.opened.set()
    assert max(shares) <= 1.3 * min(shares)
    assert slots is None or max(shares) <= slots
    assert {task.result().status for task in tasks} == {200}


class Timed:
    """Answers after ``seconds`` and records the arrival times of its requests."""

    def __init__(self, seconds: float) -> None:
        self._answer = answers_after(seconds)
        self.times: list[float] = []

    async def __call__(self, connection: EngineConnection) -> None:
        self.times.append(time.monotonic())
        await self._answer(connection)

    def count(self, begin: float, end: float) -> int:
        return sum(begin <= at < end for at in self.times)


async def test_ov05_backend_that_recovers_under_full_load_gets_its_share_gradually(fleet: Fleet) -> None:
    clients, slow_start = 20, 1.5
    returning, steady = Timed(0.05), Timed(0.05)
    engine, other = await fleet.engine(returning, owner="vllm"), await fleet.engine(steady, owner="vllm")
    proxy = await fleet.proxy(engine, other, refresh_seconds=0.2, slow_start_seconds=slow_start)
    is_over = False
    replies: list[Reply] = []

    async def asks_again_and_again() -> None:
        while not is_over:
            replies.append(await proxy.post())

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(asks_again_and_again())
        await eventually(lambda: len(returning.times) > 3 * clients)
        await engine.go()
        engine.die()
        await proxy.becomes(engine, "down")
        await engine.listen_again()
        await proxy.becomes(engine, "up")
        back_at = time.monotonic()
        await asyncio.sleep(slow_start + 0.6)
        is_over = True
    assert {reply.status for reply in replies} == {200}
    at_first, in_the_end = (back_at, back_at + 0.3), (back_at + slow_start, back_at + slow_start + 0.6)
    assert 0 < returning.count(*at_first) < 0.35 * steady.count(*at_first)
    assert returning.count(*in_the_end) > 0.75 * steady.count(*in_the_end)


@pytest.mark.slow_faults
async def test_ov06_all_clients_are_served_within_seconds_after_a_restart(tmp_path: Path, free_port: int) -> None:
    raise_file_limit()
    count = 300

    async def served_on_a_new_connection(stack: AsyncExitStack) -> float:
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", free_port)
            except OSError:  # the proxy does not listen yet
                await asyncio.sleep(0.02)
                continue
            stack.callback(writer.close)
            assert (await Client(reader, writer).ask(CHAT_REQUEST)).status == 200
            return time.monotonic()

    async with Engine(answers_after(0.01), owner="vllm") as engine, AsyncExitStack() as stack:
        first = await started(stack, tmp_path / "first", engine, PORT=str(free_port))
        await asyncio.gather(*(served_on_a_new_connection(stack) for _ in range(count)))
        first.signal(signal.SIGKILL)
        assert await first.ended() == -signal.SIGKILL
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(served_on_a_new_connection(stack)) for _ in range(count)]
            second = await started(stack, tmp_path / "second", engine, PORT=str(free_port))
            listens_at = time.monotonic()
        assert sorted(task.result() for task in tasks)[int(count * 0.99)] - listens_at < 5
        assert await second.metric("shed_total") == 0
        await asyncio.to_thread(second.stop)


@pytest.mark.parametrize(
    ("count", "body_bytes", "budget_bytes", "most_lag_seconds"),
    [
        (12, 8 * MEBIBYTE, 40 * MEBIBYTE, 2),
        # Each body blocks the event loop for 45 ms when it is complete, and 17 may be complete at the same time.
        pytest.param(50, 30 * MEBIBYTE, 512 * MEBIBYTE, 4, marks=pytest.mark.slow_faults),
    ],
)
async def test_ov07_large_bodies_stay_within_their_budget_and_delay_no_other_request(
    tmp_path: Path, count: int, body_bytes: int, budget_bytes: int, most_lag_seconds: float
) -> None:
    body = b'{"image":"' + b"A" * (body_bytes - 12) + b'"}'
    held: list[float] = []
    lags: list[float] = []
    async with Engine() as engine:
        # Sending that much from the engine's process would keep the engine from answering polls.
        settings = {"MAX_REQUEST_BYTES_IN_FLIGHT": str(budget_bytes), "METRICS_CACHE_TTL_SECONDS": "600"}
        async with program(tmp_path, engine, **settings) as proxy:

            async def looks() -> None:
                while True:
                    held.append(await proxy.metric("request_body_bytes_in_flight"))
                    lags.append(await proxy.metric("event_loop_lag_seconds"))
                    await asyncio.sleep(0.02)

            async with asyncio.TaskGroup() as group:
                looking = group.create_task(looks())
                engine.freed.clear()
                tasks = [group.create_task(send(proxy.url, CHAT, body)) for _ in range(count)]
                await until(lambda: sum(task.done() for task in tasks) + engine.count(CHAT) == count)
                engine.freed.set()
                replies = [await task for task in tasks]
                looking.cancel()
            assert await proxy.metric("shed_total", reason="request_bytes") == sum(one.status == 503 for one in replies)
            assert await proxy.metric("shed_total", reason="event_loop") == 0
            assert await proxy.is_at_rest()
    assert {one.status for one in replies} == {200, 503}
    assert {(code(one), one.headers["retry-after"]) for one in replies if one.status == 503} == {("overloaded", "1")}
    assert body_bytes <= max(held) <= budget_bytes
    assert max(lags) < most_lag_seconds


async def test_ov14_retries_do_not_double_the_load_of_a_failing_fleet(fleet: Fleet) -> None:
    requests = 1000
    engines = [await fleet.engine(fails_with(503), owner="vllm") for _ in range(4)]
    proxy = await fleet.proxy(*engines)
    left = iter(range(requests))

    async def asks_again_and_again() -> Counter[int]:
        client = Client(*await proxy.connect())
        return Counter([(await client.ask(CHAT_REQUEST)).status for _ in left])

    statuses = sum(await asyncio.gather(*(asks_again_and_again() for _ in range(20))), Counter[int]())
    assert statuses == {503: requests}
    attempts = sum(len(engine.served) for engine in engines)
    assert requests <= attempts <= 1.2 * requests + 3
    assert attempts <= requests + await proxy.metric("retries_total")  # less where a retry found no connection


async def test_ov16_key_that_floods_the_queue_waits_behind_itself(fleet: Fleet) -> None:
    gate = Gate()
    engine = await fleet.engine(gate)
    engine.slots = 1
    proxy = await fleet.proxy(
        engine, backend_queue_allowance=0, api_keys="greedy:secret-of-the-greedy,modest:secret-of-the-modest"
    )

    async def asks(name: str) -> int:
        reply = await proxy.post(CHAT, chat(user=name), Authorization=f"Bearer secret-of-the-{name}")
        return reply.status

    async with asyncio.TaskGroup() as group:
        greedy = [group.create_task(asks("greedy")) for _ in range(100)]
        await eventually(lambda: is_waiting(proxy, 99))
        modest = group.create_task(asks("modest"))
        await eventually(lambda: is_waiting(proxy, 100))
        gate.opened.set()
    assert [task.result() for task in (*greedy, modest)] == [200] * 101
    place = next(number for number, request in enumerate(engine.served) if b'"user": "modest"' in request)
    assert place <= 2  # one in service, and one that may have been next


# --- too little memory


def resident_bytes(proxy: Proxy) -> int:
    pages = int(Path(f"/proc/{proxy.pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


async def test_ov09_full_memory_admits_one_request_at_a_time(tmp_path: Path) -> None:
    async with Engine() as engine:
        engine.freed.clear()
        # Hardly more than Python with all its modules needs.
        limit = str(64 * MEBIBYTE)
        async with fresh_program(tmp_path, engine, MEMORY_LIMIT_BYTES=limit) as proxy:
            async with Call(proxy.url, CHAT, b" " * 40 * MEBIBYTE) as one:
                one.send()
                await eventually(lambda: "memory is full" in proxy.events)
                await eventually(lambda: engine.count(CHAT) == 1)
                refused = await proxy.post()
                assert (refused.status, code(refused), refused.headers["retry-after"]) == (503, "overloaded", "1")
                assert refused.headers["connection"] == "close"
                assert (await send(proxy.url, "/livez")).status == 200
                assert await proxy.metric("shed_total", reason="memory") == 1
                engine.freed.set()
                assert await one.head() == 200
            assert (await proxy.post()).status == 200


# --- too little CPU time


QUICK = {"METRICS_CACHE_TTL_SECONDS": "0.5"}


@pytest.mark.slow_faults
async def test_ov10_delay_inside_the_proxy_is_not_blamed_on_backends(tmp_path: Path) -> None:
    """The proxy is stopped during a poll, for longer than the deadline of an answer."""
    async with Engine(answers_after(0)) as engine:
        engine.health = answers_after(0.3)
        async with program(tmp_path, engine, **QUICK) as proxy:
            for _ in range(2):
                asked = len(engine.requests)
                await until(lambda asked=asked: len(engine.requests) > asked)  # type: ignore[misc]
                proxy.signal(signal.SIGSTOP)
                await asyncio.sleep(1.5)
                proxy.signal(signal.SIGCONT)
                assert (await proxy.post()).status == 200
            await proxy.becomes(engine, "up")
        assert "is down" not in proxy.events


@contextmanager
def busy_processors() -> Iterator[None]:
    """Keep all CPU cores busy with twice as many processes as there are cores."""
    with ExitStack() as stack:
        for _ in range(2 * (os.cpu_count() or 1)):
            stack.callback(stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"])).kill)
        yield


@pytest.mark.slow_faults
async def test_ov10_busy_machine_is_not_blamed_on_backends(tmp_path: Path) -> None:
    async with Engine(answers_after(0)) as engine:
        async with program(tmp_path, engine, METRICS_CACHE_TTL_SECONDS="1") as proxy:
            os.setpriority(os.PRIO_PROCESS, proxy.pid, 15)
            with busy_processors():
                until_seconds = time.monotonic() + 15
                while time.monotonic() < until_seconds:
                    assert (await proxy.post()).status == 200
                    await asyncio.sleep(0.2)
        assert "is down" not in proxy.events


def holds_up_everything(seconds: float) -> None:
    time.sleep(seconds)


async def test_ov11_code_that_blocks_the_event_loop_is_logged_and_one_block_refuses_no_request(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = await fleet.proxy(await fleet.engine())
    await asyncio.sleep(0.15)  # the watchdog has been armed
    asyncio.get_running_loop().call_soon(holds_up_everything, 1.1)
    await eventually(lambda: "the event loop was blocked for" in caplog.text)
    assert "holds_up_everything (test_overload_faults.py" in caplog.text
    assert (await proxy.post()).status == 200
    assert await proxy.metric("shed_total") == 0


@pytest.mark.slow_faults
async def test_ov11_event_loop_lag_refuses_requests_while_health_answers(
    fleet: Fleet, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LATE_LOOP_SECONDS, 0.25)
    proxy = await fleet.proxy(await fleet.engine())
    is_over = False

    async def blocks() -> None:
        while not is_over:
            await asyncio.sleep(0)
            holds_up_everything(0.4)

    async with asyncio.TaskGroup() as group:
        group.create_task(blocks())
        await eventually(lambda: "overloaded: the event loop is" in caplog.text)
        refused = await proxy.post()
        assert (refused.status, code(refused), refused.headers["retry-after"]) == (503, "overloaded", "1")
        assert (await send(proxy.url, "/readyz")).status == 200
        is_over = True
    assert await proxy.metric("shed_total", reason="event_loop") == 1
    await eventually(lambda: is_served(proxy))
    assert caplog.text.count("overloaded: the event loop is") == 1


async def is_served(proxy: RunningProxy) -> bool:
    return (await proxy.post()).status == 200


# --- no file or port for another connection


async def test_ov12_running_out_of_files_refuses_requests_and_blames_no_backend(
    tmp_path: Path,
) -> None:
    async with Engine(answers_after(0)) as engine, AsyncExitStack() as clients:
        async with program(tmp_path, engine, **QUICK) as proxy:
            pid = proxy.pid
            halves = [Client(*await connect(proxy, clients)) for _ in range(8)]  # idle connections would be closed
            for half in halves:
                half.send(CHAT_REQUEST[:-5])
            await eventually(lambda: has_connections(proxy, len(halves) + 1))
            soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))
            for half in halves:
                await asyncio.sleep(0.25)  # several polls fail in this time
                reply = await half.ask(CHAT_REQUEST[-5:])
                assert (reply.status, json.loads(reply.body)["error"]["code"]) == (503, "overloaded")
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
            assert (await proxy.post()).status == 200
            await proxy.becomes(engine, "up")
            assert not engine.served[1:]
        assert "is down" not in proxy.events


async def has_connections(proxy: RunningProxy, count: int) -> bool:
    return await proxy.metric("client_connections") == count


async def connect(proxy: RunningProxy, clients: AsyncExitStack) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = proxy.url.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    clients.callback(writer.close)
    return reader, writer


@pytest.mark.slow_faults
def test_ov12_running_out_of_ports_refuses_requests_and_blames_no_backend() -> None:
    alone = ["unshare", "--map-root-user", "--net"]
    may = subprocess.run([*alone, "true"], capture_output=True, text=True, check=False)
    assert may.returncode == 0, f"this test needs user and network namespaces (sysctl, container): {may.stderr}"
    file = Path(__file__).with_name("few_ports.py")
    paths = os.pathsep.join([str(file.parents[1]), *sys.path])

    done = subprocess.run(
        [*alone, sys.executable, file],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["codes"].keys() == {"overloaded"}
    assert seen["served"] >= 2
    assert seen["slowest refusal"] < 2
    assert seen["state"] == "up"
    assert "is down" not in done.stderr
