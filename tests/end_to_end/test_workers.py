"""Several processes on one port are one service for clients and operators."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from support.engine import EVENT, STREAM_HEAD, Engine, answers_with, chunk
from support.fakes.engine import EngineConnection, http_reply
from support.http_client import Call, Reply, chat, send
from support.program import Proxy, program
from support.waiting import eventually

CHAT = "/v1/chat/completions"
METRICS_PAGE = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
KEY = "key-of-the-operators"
BEARER = {"Authorization": f"Bearer {KEY}"}


class Streams:
    """An answer that lasts until the test ends it; counts open answers and their maximum."""

    def __init__(self) -> None:
        self.may_end = asyncio.Event()
        self.open = self.most = 0

    async def __call__(self, connection: EngineConnection) -> None:
        self.open += 1
        self.most = max(self.most, self.open)
        connection.send(STREAM_HEAD, chunk(EVENT))
        await self.may_end.wait()
        self.open -= 1
        connection.send(chunk(EVENT), b"0\r\n\r\n")


def worker_of(reply: Reply | Call) -> str:
    """The part of a request id that identifies the worker."""
    return reply.headers["x-request-id"].partition("-")[0]


@asynccontextmanager
async def open_streams(proxy: Proxy, count: int) -> AsyncIterator[list[Call]]:
    """Started streams, each on its own connection, spread over both workers."""
    async with AsyncExitStack() as stack:
        calls: list[Call] = []
        while len(calls) < count or len({worker_of(call) for call in calls}) < 2:
            calls.append(await stack.enter_async_context(proxy.call(CHAT)))
            calls[-1].send()
            assert await calls[-1].head() == 200
        yield calls


async def test_workers_share_the_port_and_the_start_is_logged_once(tmp_path: Path) -> None:
    async with Engine(answers_with(http_reply())) as engine, program(tmp_path, engine, WORKERS="2") as proxy:
        replies = [await proxy.post() for _ in range(40)]

        assert {reply.status for reply in replies} == {200}
        assert len({worker_of(reply) for reply in replies}) == len(proxy.workers) == 2
        assert proxy.events.count("listening on") == 1
        assert "[worker 0]" in proxy.events
        assert "[worker 1]" in proxy.events


async def test_one_worker_needs_no_extra_process(tmp_path: Path) -> None:
    async with Engine(answers_with(http_reply())) as engine, program(tmp_path, engine, WORKERS="1") as proxy:
        assert proxy.workers == []
        assert "[worker" not in proxy.events
        assert "worker=" not in (await send(proxy.url, "/metrics")).body.decode()


async def test_workers_spread_a_burst_as_evenly_as_one_process(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        streams = Streams()
        engines = [await stack.enter_async_context(Engine(streams, owner="vllm")) for _ in range(4)]
        proxy = await stack.enter_async_context(program(tmp_path, *engines, WORKERS="3"))
        calls = [await stack.enter_async_context(proxy.call(CHAT)) for _ in range(32)]

        for call in calls:
            call.send()
        assert {await call.head() for call in calls} == {200}

        assert len({worker_of(call) for call in calls}) > 1
        # Two workers that choose in the same microsecond may pick the same backend; later choices balance it.
        counts = [len(engine.served) for engine in engines]
        assert max(counts) - min(counts) <= 2
        health = (await send(proxy.url, "/health")).json
        assert sum(one["requests_in_flight"] for one in health["details"]) == 32
        streams.may_end.set()
        assert all([(await call.reply()).complete for call in calls])
        await eventually(lambda: nothing_in_flight(proxy))


async def nothing_in_flight(proxy: Proxy) -> bool:
    health = (await send(proxy.url, "/health")).json
    return not any(one["requests_in_flight"] for one in health["details"])


async def test_slot_is_never_leased_twice_and_every_waiting_request_gets_one(tmp_path: Path) -> None:
    async def answer(connection: EngineConnection) -> None:
        running.append(connection)
        most.append(len(running))
        await asyncio.sleep(0.01)
        running.remove(connection)
        connection.send(http_reply())

    running: list[EngineConnection] = []
    most: list[int] = []
    async with Engine(answer) as engine:
        engine.slots = 2
        async with program(tmp_path, engine, WORKERS="2", BACKEND_QUEUE_ALLOWANCE="0") as proxy:
            replies = await asyncio.gather(*(proxy.post() for _ in range(60)))

    assert {reply.status for reply in replies} == {200}
    assert len({worker_of(reply) for reply in replies}) == 2
    assert max(most) <= 3  # two, and one more if both workers choose in the same microsecond


async def test_metrics_show_all_workers(tmp_path: Path) -> None:
    async with Engine(answers_with(http_reply())) as engine, program(tmp_path, engine, WORKERS="2") as proxy:
        workers = Counter([worker_of(await proxy.post()) for _ in range(20)])
        page = (await send(proxy.url, "/metrics")).body.decode()

        families = list(text_string_to_metric_families(page))
        assert len({family.name for family in families}) == len(families)
        samples = [sample for family in families for sample in family.samples]
        assert {sample.labels["worker"] for sample in samples} == {"0", "1"}
        assert len({(sample.name, *sorted(sample.labels.items())) for sample in samples}) == len(samples)
        served = [
            sample.value
            for sample in samples
            if sample.name == "inference_proxy_requests_total" and sample.labels["route"] == "chat_completions"
        ]
        assert sorted(served) == sorted(workers.values())
        assert await proxy.metric("worker_up") == 2
        assert "`inference_proxy_worker_up`" in METRICS_PAGE


async def test_hanging_worker_is_reported_as_missing(tmp_path: Path) -> None:
    async with Engine(answers_with(http_reply())) as engine:
        async with program(tmp_path, engine, WORKERS="2", ADMIN_KEY=KEY) as proxy:
            frozen = proxy.workers[0]
            os.kill(frozen, signal.SIGSTOP)
            try:
                page = await first_answer(proxy, "/metrics")
                listed = await first_answer(proxy, "/admin/backends")
                drained = await first_answer(proxy, f"/admin/backends/{engine.url}/drain", "POST")
            finally:
                os.kill(frozen, signal.SIGCONT)

    up = re.findall(r"^inference_proxy_worker_up\S+ (\S+)$", page.body.decode(), re.MULTILINE)
    assert sorted(up) == ["0.0", "1.0"]
    assert listed.json["silent_workers"] == drained.json["silent_workers"] == [up.index("0.0")]
    assert (drained.json["requests_in_flight"], drained.json["safe_to_stop"]) == (0, False)


async def first_answer(proxy: Proxy, path: str, method: str = "GET") -> Reply:
    """The first reply to many concurrent requests; those accepted by a hanging worker get none."""
    loop = asyncio.get_running_loop()
    asking = [loop.create_task(send(proxy.url, path, method=method, headers=BEARER)) for _ in range(12)]
    done, waiting = await asyncio.wait(asking, timeout=20, return_when=asyncio.FIRST_COMPLETED)
    for one in waiting:
        one.cancel()
    await asyncio.wait(asking)
    return done.pop().result()


async def test_drain_command_reaches_present_and_later_workers(tmp_path: Path) -> None:
    streams = Streams()
    async with Engine(streams) as leaving, Engine(answers_with(http_reply())) as staying:
        staying.processing = 5  # so that the first requests go to the other backend
        async with program(tmp_path, leaving, staying, WORKERS="2", ADMIN_KEY=KEY) as proxy:
            path = f"/admin/backends/{leaving.url}"
            async with open_streams(proxy, 2):
                drained = (await send(proxy.url, f"{path}/drain", method="POST", headers=BEARER)).json
                assert (drained["draining"], drained["safe_to_stop"]) == (True, False)
                assert drained["requests_in_flight"] == streams.open

                os.kill(proxy.workers[0], signal.SIGKILL)
                await eventually(lambda: "serves again" in proxy.events)
                for _ in range(20):
                    assert (await proxy.post()).headers["x-backend"] == staying.url

                streams.may_end.set()
                waited = await send(proxy.url, f"{path}/drain?wait_seconds=10", method="POST", headers=BEARER)
                assert waited.json["safe_to_stop"]
            await send(proxy.url, f"{path}/undrain", method="POST", headers=BEARER)
            await eventually(lambda: is_used_by_both(proxy, leaving))


async def is_used_by_both(proxy: Proxy, engine: Engine) -> bool:
    replies = [await proxy.post() for _ in range(12)]
    return len({worker_of(reply) for reply in replies if reply.headers["x-backend"] == engine.url}) == 2


async def test_requests_of_keys_are_summed_and_the_lowest_remainder_is_shown(tmp_path: Path) -> None:
    streams = Streams()
    (tmp_path / "keys.yaml").write_text(
        "keys: [{name: a, secret: sk-aaaaaaaaaaaaaaaaaaaaaaaa, requests_per_minute: 600}]"
    )
    settings = {"ADMIN_KEY": KEY, "API_KEYS_FILE": str(tmp_path / "keys.yaml")}
    secret = {"Authorization": "Bearer sk-aaaaaaaaaaaaaaaaaaaaaaaa"}
    async with Engine(streams) as engine, program(tmp_path / "proxy", engine, WORKERS="2", **settings) as proxy:
        async with AsyncExitStack() as stack:
            calls: list[Call] = []
            while len(calls) < 5 or len({worker_of(call) for call in calls}) < 2:
                call = Call(proxy.url, CHAT, chat(stream=True), headers=secret)
                calls.append(await stack.enter_async_context(call))
                call.send()
                assert await call.head() == 200

            [row] = (await send(proxy.url, "/admin/keys", headers=BEARER)).json["keys"]

            assert row["requests_in_flight"] == len(calls)
            most = max(Counter(map(worker_of, calls)).values())
            assert 600 - most <= row["requests_left"] <= 600 - most + 20  # the allowance refills by ten a second
            streams.may_end.set()
            for call in calls:
                await call.reply()


async def test_admin_port_reaches_all_workers(tmp_path: Path) -> None:
    async with Engine(answers_with(http_reply())) as engine:
        async with program(tmp_path, engine, WORKERS="2", ADMIN_KEY=KEY, ADMIN_PORT="0") as proxy:
            found = re.search(r"listening on (http://\S+) for operators", proxy.events)
            assert found is not None
            for _ in range(8):
                page = (await send(found[1], "/metrics")).body.decode()
                assert page.count("inference_proxy_worker_up{") == 2
            assert (await send(proxy.url, "/metrics")).status == 404
