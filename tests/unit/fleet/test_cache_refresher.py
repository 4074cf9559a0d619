"""Backends are polled repeatedly; with scripted engines over real sockets."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from inference_engine_proxy_server.backends.base import BaseBackend, Probe, Thresholds
from inference_engine_proxy_server.backends.openai import OpenAIBackend
from inference_engine_proxy_server.backends.registry import Engines, discover_engines
from inference_engine_proxy_server.fleet.cache_refresher import CacheRefresher
from inference_engine_proxy_server.tasks.deadlines import Deadlines
from support.fakes.engine import EngineConnection, FakeEngine, Script, http_reply
from support.fakes.front import until
from support.pools import Pool, make_pool
from support.ports import unused_url

MODELS = b'{"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "%b"}]}'
LLAMACPP_METRICS = b"llamacpp:requests_processing %d\nllamacpp:requests_deferred 0\n"


def reporting(
    owner: bytes = b"llamacpp",
    processing: Callable[[], int] = lambda: 0,
    others: Mapping[str, bytes | asyncio.Event] | None = None,
) -> Script:
    """Answers polls as a llama.cpp server does.

    Args:
        owner: the provider of the model.
        processing: number of requests that the engine works on.
        others: by path, a different reply, or an event to wait for.
    """

    async def script(connection: EngineConnection) -> None:
        request = await connection.request()
        path = request.split(b" ")[1].decode()
        other = (others or {}).get(path)
        if isinstance(other, asyncio.Event):
            await other.wait()
        elif other is not None:
            connection.send(other)
        elif path == "/v1/models":
            connection.send(http_reply(MODELS % owner))
        elif path == "/metrics":
            connection.send(http_reply(LLAMACPP_METRICS % processing()))
        else:
            connection.send(http_reply(b'{"status":"ok"}'))
        connection.finish()

    return script


@asynccontextmanager
async def refreshing(
    *engines: FakeEngine | str, seconds: float = 0.02, tests_suspects: bool = False, known: Engines | None = None
) -> AsyncIterator[Pool]:
    """A pool whose backends are polled at an interval of ``seconds``, with the ``known`` engines."""
    pool = make_pool(engines, Deadlines())
    known = known or discover_engines()
    refresher = CacheRefresher(pool.fleet, known, Thresholds(6, 3), seconds, tests_suspects=tests_suspects)
    async with asyncio.TaskGroup() as background:
        running = background.create_task(refresher.run())
        yield pool
        running.cancel()


def asked(engine: FakeEngine) -> Counter[str]:
    return Counter(request.split(b" ")[1].decode() for request in engine.requests)


async def test_reported_state_is_published() -> None:
    async with FakeEngine(reporting(processing=lambda: 4)) as engine, refreshing(engine) as pool:
        backend = pool.backends[0]
        await until(lambda: backend.takes_requests)
        assert backend.serving.model_ids == {"m"}
        assert (backend.load.total, backend.health.reported.requests_processing) == (4, 4)
        assert backend.connections.keeps_alive is False
        assert time.time() - backend.reported_at < 5


async def test_backend_above_the_thresholds_is_busy_until_it_is_below() -> None:
    loads = [9]
    async with FakeEngine(reporting(processing=lambda: loads[0])) as engine, refreshing(engine) as pool:
        backend = pool.backends[0]
        await until(lambda: backend.is_live)
        assert not backend.takes_requests
        loads[0] = 6
        await until(lambda: backend.takes_requests)


async def test_limit_of_the_fleet_file_replaces_the_usual_one() -> None:
    async with FakeEngine(reporting(processing=lambda: 9)) as engine:
        pool = make_pool([engine], Deadlines())
        backend = pool.backends[0]
        backend.configure(replace(backend.config, max_requests_processing=9))
        refresher = CacheRefresher(pool.fleet, discover_engines(), Thresholds(6, 3), 60)
        await refresher.refresh(backend)
        assert (backend.takes_requests, backend.health.reason) == (True, "")


async def test_backend_that_hangs_delays_no_other_and_is_not_polled_twice() -> None:
    never = asyncio.Event()
    async with FakeEngine(reporting(others={"/v1/models": never})) as hanging, FakeEngine(reporting()) as quick:
        async with refreshing(hanging, quick) as pool:
            await until(lambda: asked(quick)["/metrics"] >= 4)
            assert len(hanging.connections) == 1
            assert [backend.takes_requests for backend in pool.backends] == [False, True]


async def test_hanging_metrics_page_does_not_exclude_a_backend() -> None:
    never = asyncio.Event()
    async with FakeEngine(reporting(others={"/metrics": never})) as engine, refreshing(engine, seconds=1) as pool:
        await until(lambda: pool.backends[0].takes_requests)
        assert pool.backends[0].health.reported.requests_processing is None


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(http_reply(b"x" * (5 << 20)), id="five megabytes"),
        pytest.param(http_reply(b"\x00\xff{]"), id="garbage"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n\r\n", id="not HTTP"),
        pytest.param(b"", id="closes"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/health", "/metrics"])
async def test_loop_survives_any_reply(page: bytes, path: str) -> None:
    async with FakeEngine(reporting(others={path: page})) as engine, refreshing(engine) as pool:
        await until(lambda: asked(engine)[path] >= 2)
        engine.script = reporting()
        await until(lambda: pool.backends[0].takes_requests)


async def test_backend_that_goes_down_joins_again_when_it_is_back() -> None:
    async with FakeEngine(reporting()) as engine, refreshing(engine) as pool:
        backend = pool.backends[0]
        await until(lambda: backend.takes_requests)
        engine.refuse()
        await until(lambda: not backend.is_live)
        assert backend.health.reason.startswith("it cannot be reached, because nothing listens there")
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: EngineConnection(engine), "127.0.0.1", engine.port)
        await until(lambda: backend.takes_requests)
        server.close()


TGI_INFO = (
    b'{"model_id":"m","max_concurrent_requests":8,"max_best_of":2,"max_stop_sequences":4,"max_total_tokens":2048,'
    b'"version":"3.3.7"}'
)


async def test_engine_whose_model_is_its_own_owner_is_identified_and_asked_for_its_info() -> None:
    pages: dict[str, bytes | asyncio.Event] = {
        "/info": http_reply(TGI_INFO),
        "/metrics": http_reply(b"tgi_request_count 9\ntgi_batch_current_size 3\ntgi_queue_size 2\n"),
    }
    async with FakeEngine(reporting(b"m", others=pages)) as engine, refreshing(engine) as pool:
        backend = pool.backends[0]
        await until(lambda: backend.takes_requests)
        assert (backend.engine, backend.health.reported.engine_version) == ("tgi", "3.3.7")
        assert (backend.load.foreign, backend.load.slots) == (5, 8)
        assert backend.serving.model_ids == {"m"}
        await until(lambda: asked(engine)["/info"] >= 3)
        assert asked(engine)["/v1/models"] == 1  # identified once


class SlowToTell(BaseBackend):
    """An engine that only its own page identifies."""

    providers = ("slow-to-tell",)

    @classmethod
    async def recognizes(cls, probe: Probe) -> bool:
        return await probe.text("/mark") == b"mark"

    async def fetch_metrics(self) -> tuple[float, bool]:
        return 3.0, True


TELLING = Engines({"slow-to-tell": SlowToTell}, OpenAIBackend, (SlowToTell,))


async def test_a_question_about_the_engine_that_times_out_is_repeated_and_the_backend_is_used_meanwhile() -> None:
    mark = asyncio.Event()
    pages: dict[str, bytes | asyncio.Event] = {"/mark": mark}
    async with FakeEngine(reporting(b"nobody", others=pages)) as engine, refreshing(engine, known=TELLING) as pool:
        backend = pool.backends[0]
        await until(lambda: backend.takes_requests)
        assert backend.engine == "openai"
        pages["/mark"] = http_reply(b"mark")
        await until(lambda: backend.engine == "slow-to-tell")
        polls = asked(engine)["/v1/models"]
        await until(lambda: asked(engine)["/v1/models"] > polls + 3)
        assert asked(engine)["/mark"] <= 3


async def test_a_question_about_the_engine_that_always_times_out_is_repeated_twice() -> None:
    pages: dict[str, bytes | asyncio.Event] = {"/mark": asyncio.Event()}
    async with FakeEngine(reporting(b"nobody", others=pages)) as engine, refreshing(engine, known=TELLING) as pool:
        await until(lambda: asked(engine)["/mark"] == 3)
        health = asked(engine)["/health"]
        await until(lambda: asked(engine)["/health"] > health + 5)
        assert asked(engine)["/mark"] == 3
        assert pool.backends[0].engine == "openai"


async def test_engine_is_identified_again_after_a_refused_poll() -> None:
    async with FakeEngine(reporting()) as engine, refreshing(engine) as pool:
        backend = pool.backends[0]
        await until(lambda: backend.takes_requests)
        assert not backend.connections.keeps_alive
        engine.script = reporting(
            owner=b"vllm", others={"/health": b""}
        )  # breaks its connections: it is being replaced
        await until(lambda: not backend.is_live)
        engine.script = reporting(owner=b"vllm")
        await until(lambda: backend.connections.keeps_alive)


async def test_engine_is_logged_once_however_often_its_backend_refuses_polls(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    pool = make_pool([unused_url()], Deadlines())
    backend = pool.backends[0]
    refresher = CacheRefresher(pool.fleet, discover_engines(), Thresholds(6, 3), 60)
    for engine in ("llamacpp", "vllm"):
        backend.configure(replace(backend.config, engine=engine))
        refresher.forget_engine(backend)
        for _ in range(3):
            await refresher.refresh(backend)
    named = [record.getMessage().rpartition(" ")[2] for record in caplog.records if "its engine is" in record.msg]
    assert named == ["llamacpp", "vllm"]


async def test_failed_backend_is_polled_at_once() -> None:
    async with FakeEngine(reporting()) as engine, refreshing(engine, seconds=60) as pool:
        backend = pool.backends[0]
        pool.report_failure(backend, "it broke a connection")
        await until(lambda: backend.takes_requests)


async def test_loading_backend_is_starting_not_failing(caplog: pytest.LogCaptureFixture) -> None:
    loading = http_reply(b'{"error":{"message":"Loading model","type":"unavailable_error","code":503}}', 503)
    async with (
        FakeEngine(reporting(others={"/v1/models": loading, "/health": loading})) as engine,
        refreshing(engine) as pool,
    ):
        backend = pool.backends[0]
        await until(lambda: asked(engine)["/v1/models"] >= 3)
        assert not backend.takes_requests
        engine.script = reporting()
        await until(lambda: backend.takes_requests)
    assert not [record for record in caplog.records if record.exc_info]


async def test_first_round_does_not_wait_long_for_a_dead_backend() -> None:
    never = asyncio.Event()
    async with FakeEngine(reporting(others={"/v1/models": never})) as hanging, FakeEngine(reporting()) as quick:
        pool = make_pool([hanging, quick], Deadlines())
        refresher = CacheRefresher(pool.fleet, discover_engines(), Thresholds(6, 3), 60)
        async with asyncio.TaskGroup() as background:
            running = background.create_task(refresher.run())
            before = time.monotonic()
            await refresher.first_round()
            assert time.monotonic() - before < 20
            assert [backend.takes_requests for backend in pool.backends] == [False, True]
            running.cancel()


async def test_backend_that_has_left_is_polled_until_its_last_request_has_ended() -> None:
    async with FakeEngine(reporting()) as engine, refreshing(engine) as pool:
        [backend] = pool.backends
        await until(lambda: backend.takes_requests)
        backend.load.leases = 1
        pool.fleet.replace([])
        polls = asked(engine)["/metrics"]
        await until(lambda: asked(engine)["/metrics"] > polls + 2)
        assert not backend.takes_requests

        backend.load.leases = 0
        pool.fleet.forget_finished()
        assert pool.fleet.watched == ()
        await asyncio.sleep(0.1)  # five intervals, in which the last poll ends
        polls = asked(engine)["/metrics"]
        await asyncio.sleep(0.1)
        assert asked(engine)["/metrics"] == polls


async def test_backend_that_joins_is_polled_at_once() -> None:
    async with FakeEngine(reporting()) as engine, refreshing(engine, seconds=3600) as pool:
        [backend] = pool.backends
        pool.fleet.replace([])
        await asyncio.sleep(0)
        pool.fleet.replace([backend])
        await until(lambda: asked(engine)["/metrics"] > 0)


async def test_polls_of_a_fleet_do_not_coincide() -> None:
    times: list[float] = []

    def note() -> int:
        times.append(time.monotonic())
        return 0

    async with FakeEngine(reporting(processing=note)) as engine, refreshing(engine, seconds=0.05):
        await until(lambda: len(times) > 20)
    gaps = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert max(gaps) - min(gaps) > 0.01  # plus and minus a fifth of the interval


def stick(pool: Pool) -> None:
    """Let the backend leave requests without an answer."""
    for _ in range(2):
        pool.report_timeout(pool.backends[0])
    assert pool.backends[0].health.is_stuck


async def test_stuck_backend_is_tested_with_one_token_if_configured() -> None:
    async with FakeEngine(reporting()) as engine, refreshing(engine, tests_suspects=True) as pool:
        await until(lambda: pool.backends[0].takes_requests)
        stick(pool)
        await until(lambda: pool.backends[0].takes_requests)
    [test] = [request for request in engine.requests if request.startswith(b"POST /v1/")]
    assert test.startswith(b"POST /v1/completions HTTP/1.1\r\n")
    assert test.endswith(b'{"model":"m","prompt":"1","max_tokens":1}')


@pytest.mark.parametrize("tests_suspects", [False, True], ids=["not configured", "slots are full"])
async def test_stuck_backend_is_not_tested_by_default(tests_suspects: bool) -> None:
    slots = {"/props": http_reply(b'{"total_slots": 1}')}
    async with FakeEngine(reporting(processing=lambda: 1, others=slots)) as engine:
        async with refreshing(engine, tests_suspects=tests_suspects) as pool:
            await until(lambda: pool.backends[0].takes_requests)
            stick(pool)
            polls = asked(engine)["/health"]
            await until(lambda: asked(engine)["/health"] >= polls + 5)
            assert not pool.backends[0].takes_requests
    assert not any(request.startswith(b"POST /v1/") for request in engine.requests)


async def test_backend_that_fails_its_test_stays_suspect() -> None:
    failing = {"/v1/completions": http_reply(b"{}", 500)}
    async with FakeEngine(reporting(others=failing)) as engine, refreshing(engine, tests_suspects=True) as pool:
        await until(lambda: pool.backends[0].takes_requests)
        stick(pool)
        await until(lambda: asked(engine)["/v1/completions"] >= 3)
        assert not pool.backends[0].takes_requests
