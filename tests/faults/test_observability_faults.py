"""Polls with missing, late or wrong answers, and what clients and operators see of them."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from faults.conftest import CHAT
from inference_engine_proxy_server.backends.base import BackendState
from inference_engine_proxy_server.backends.llamacpp import LlamaCppBackend
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.fleet import Fleet as BackendFleet
from support.engine import EVENT, STREAM_HEAD, Answer, Engine, answers_with, chunk, fails_with, hangs
from support.fakes.engine import EngineConnection, http_reply
from support.fleet import Fleet
from support.http_client import Call, Reply, chat, send
from support.ports import unused_url
from support.program import program
from support.running_proxy import RunningProxy
from support.waiting import eventually

ADMIN_KEY = "k" * 32
OK_REPLY = answers_with(http_reply())


async def samples_of(proxy: RunningProxy, name: str, engine: Engine) -> list[str]:
    """The samples of a metric for ``engine``."""
    page = (await send(proxy.url, "/metrics")).body.decode()
    return re.findall(rf'^inference_proxy_{name}{{backend="{engine.url}"}} (\S+)$', page, re.MULTILINE)


# --- backends that report less than usual


@pytest.mark.parametrize("status", [404, 501])
async def test_ob01_engine_without_metrics_is_balanced_by_leases_and_polls_log_nothing(
    fleet: Fleet, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    caplog.set_level("INFO")
    gate = asyncio.Event()

    async def waits(connection: EngineConnection) -> None:
        await gate.wait()
        connection.send(http_reply())

    engines = [await fleet.add(Engine(waits)) for _ in range(2)]
    for engine in engines:
        engine.pages["/metrics"] = answers_with(http_reply(b"", status))
    proxy = await fleet.proxy(*engines, refresh_seconds=0.05)
    caplog.clear()  # later polls must log nothing
    async with asyncio.TaskGroup() as group:
        for _ in range(20):
            group.create_task(proxy.post())
        await eventually(lambda: sum(len(engine.served) for engine in engines) == 20)
        assert [len(engine.served) for engine in engines] == [10, 10]
        assert [await samples_of(proxy, "backend_load", engine) for engine in engines] == [["10.0"], ["10.0"]]
        assert [await samples_of(proxy, "backend_requests_running", engine) for engine in engines] == [[], []]
        await eventually(lambda: min(engine.count("/metrics") for engine in engines) > 10)
        assert {await proxy.state(engine) for engine in engines} == {"up"}
        gate.set()
    assert not [record for record in caplog.records if any(engine.url in record.getMessage() for engine in engines)]


async def test_ob02_hanging_metrics_make_figures_stale_but_no_backend_unhealthy(fleet: Fleet) -> None:
    engine, other = await fleet.add(Engine(OK_REPLY)), await fleet.engine(processing=2)
    engine.processing = 5
    proxy = await fleet.proxy(engine, other, refresh_seconds=0.5)
    assert await samples_of(proxy, "backend_load", engine) == ["5.0"]
    engine.pages["/metrics"] = hangs
    await eventually(lambda: has_load(proxy, engine, "0.0"))
    assert await samples_of(proxy, "backend_requests_running", engine) == []
    assert await proxy.state(engine) == "up"
    # An unknown load does not make it the least loaded backend.
    assert {(await proxy.post()).headers["x-backend"] for _ in range(5)} == {other.url}
    del engine.pages["/metrics"]
    await eventually(lambda: has_load(proxy, engine, "5.0"))


async def has_load(proxy: RunningProxy, engine: Engine, load: str) -> bool:
    return await samples_of(proxy, "backend_load", engine) == [load]


async def test_ob03_renamed_metric_is_recognized_and_a_missing_one_is_not_zero(fleet: Fleet) -> None:
    engine = await fleet.add(Engine(OK_REPLY, owner="vllm"))
    running = b'vllm:num_requests_running{engine="0"} 3\n'
    engine.pages["/metrics"] = answers_with(http_reply(running + b'vllm:gpu_cache_usage_perc{engine="0"} 0.25\n'))
    proxy = await fleet.proxy(engine, refresh_seconds=0.05)
    assert (await proxy.backend(engine))["metrics"]["vllm:kv_cache_usage_perc"] == 0.25
    assert await samples_of(proxy, "backend_requests_running", engine) == ["3.0"]
    assert await samples_of(proxy, "backend_requests_waiting", engine) == []
    assert await samples_of(proxy, "backend_load", engine) == ["3.0"]

    engine.pages["/metrics"] = answers_with(http_reply(b'vllm:running_requests{engine="0"} 9\n'))
    await eventually(lambda: check_unknown_load(proxy, engine))
    assert "vllm:kv_cache_usage_perc" not in (await proxy.backend(engine))["metrics"]
    assert await proxy.state(engine) == "up"


async def check_unknown_load(proxy: RunningProxy, engine: Engine) -> bool:
    return await samples_of(proxy, "backend_requests_running", engine) == []


@pytest.mark.parametrize("reported", ["-5", "NaN", "+Inf", "1e308"])
async def test_ob11_no_load_is_negative_or_left_over_whatever_a_backend_counts(fleet: Fleet, reported: str) -> None:
    engine = await fleet.engine()
    engine.processing = 4
    proxy = await fleet.proxy(engine, refresh_seconds=0.05, max_allowed_request_queue=1_000_000)
    assert await samples_of(proxy, "backend_load", engine) == ["4.0"]
    engine.processing = reported  # type: ignore[assignment]
    asked = len(engine.requests)
    await eventually(lambda: len(engine.requests) > asked + 20)
    [load] = await samples_of(proxy, "backend_load", engine)
    assert float(load) >= 0
    for shown in await samples_of(proxy, "backend_requests_running", engine):
        assert 0 <= float(shown) < float("inf")
    engine.processing = 0
    await eventually(lambda: has_load(proxy, engine, "0.0"))
    assert {(await proxy.post()).status for _ in range(5)} == {200}
    assert await samples_of(proxy, "requests_in_flight", engine) == ["0.0"]


# --- polls that fail


async def test_ob06_engine_class_that_raises_is_logged_once_and_polled_again(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine, other = await fleet.engine(), await fleet.engine()
    fetch_state = LlamaCppBackend.fetch_state
    is_broken = False

    async def raises(self: LlamaCppBackend) -> BackendState:
        if is_broken and self.url == engine.url:
            raise ValueError("an unexpected state")
        return await fetch_state(self)

    monkeypatch.setattr(LlamaCppBackend, "fetch_state", raises)
    proxy = await fleet.proxy(engine, other, refresh_seconds=0.1)
    is_broken = True
    await proxy.becomes(engine, "down")
    assert await proxy.state(other) == "up"
    [told_at] = await samples_of(proxy, "backend_state_timestamp_seconds", engine)
    await asyncio.sleep(0.5)  # both are polled again in this time
    assert await samples_of(proxy, "backend_state_timestamp_seconds", engine) == [told_at]
    [told_at_by_other] = await samples_of(proxy, "backend_state_timestamp_seconds", other)
    assert float(told_at_by_other) > float(told_at) + 0.1
    assert [record.getMessage() for record in caplog.records if record.exc_info] == [
        f"backend {engine.url}: its engine class failed; logged once until it works again"
    ]
    is_broken = False
    await proxy.becomes(engine, "up")


async def test_ob06_crashed_polling_loop_is_logged_and_restarted(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = await fleet.engine()
    proxy = await fleet.proxy(engine, refresh_seconds=0.1)
    publish = BackendFleet.publish

    def crashes_once(self: BackendFleet, backend: Backend, reported: BackendState, **when: float) -> None:
        monkeypatch.setattr(BackendFleet, "publish", publish)
        raise RuntimeError("a bug of the proxy")

    monkeypatch.setattr(BackendFleet, "publish", crashes_once)
    await eventually(lambda: "'cache refresher' crashed; restarting it" in caplog.text)
    asked = len(engine.requests)
    assert (await proxy.post()).status == 200
    await eventually(lambda: len(engine.requests) > asked + 10)
    assert await proxy.state(engine) == "up"


async def test_ob08_polls_of_a_large_fleet_do_not_coincide_or_repeat_too_often(fleet: Fleet) -> None:
    count, interval = 60, 0.5
    times: dict[Engine, list[float]] = {}

    def noting(engine: Engine) -> Answer:
        async def answer(connection: EngineConnection) -> None:
            times.setdefault(engine, []).append(time.monotonic())
            connection.send(http_reply())

        return answer

    engines = [await fleet.engine(owner="unknown-engine") for _ in range(count)]
    for engine in engines:
        engine.health = noting(engine)
    await fleet.proxy(*engines, refresh_seconds=interval)
    times.clear()
    began = time.monotonic()
    await asyncio.sleep(5.2 * interval)
    for asked in times.values():
        gaps = [later - earlier for earlier, later in itertools.pairwise(asked)]
        assert len(asked) >= 3
        assert min(gaps) > 0.7 * interval
    # In the fourth round, polls have drifted apart: no tenth of the interval has more than three times its share.
    window = [at for asked in times.values() for at in asked if 0 <= at - began - 4 * interval < interval]
    tenths = Counter(int((at - began - 4 * interval) / (interval / 10)) for at in window)
    assert len(window) >= count * 0.6
    assert max(tenths.values()) <= 3 * count / 10


async def test_ob09_polls_wake_no_sleeping_model(fleet: Fleet) -> None:
    single, router = await fleet.add(Engine(OK_REPLY)), await fleet.add(Engine(OK_REPLY))
    single.slots = 1
    entries = [
        {"id": name, "object": "model", "owned_by": "llamacpp", "status": {"value": "unloaded"}} for name in "ab"
    ]
    router.pages["/v1/models"] = answers_with(http_reply(json.dumps({"object": "list", "data": entries}).encode()))
    router.pages["/metrics"] = answers_with(http_reply(b'{"error":{"message":"model name is missing"}}', 400))
    proxy = await fleet.proxy(single, router, refresh_seconds=0.05)
    await eventually(lambda: min(engine.count("/health") for engine in (single, router)) > 5)
    assert {await proxy.state(engine) for engine in (single, router)} == {"up"}
    # Questions count as use of the model. So a server that is awake gets each once, and a router none.
    posts = [request.split(b" ")[1] for request in single.requests if b"POST" in request]
    assert posts == [b"/apply-template", b"/tokenize"]
    for engine in (single, router):
        asked = {b" ".join(request.split(b" ")[:2]) for request in engine.requests if b"POST" not in request}
        assert asked <= {b"GET /health", b"GET /metrics", b"GET /v1/models", b"GET /props"}
        assert not any(b"?" in line for line in asked)
    assert not any(b"POST" in request for request in router.requests)
    assert not single.served + router.served


# --- counters


Leave = Callable[[Call], Awaitable[None]]


@pytest.mark.parametrize("count", [60, pytest.param(10_000, marks=pytest.mark.slow_faults)])
async def test_ob10_counts_match_the_engines_however_clients_disconnect(fleet: Fleet, count: int) -> None:
    async def whatever(connection: EngineConnection) -> None:
        kind = random.random()
        if kind < 0.3:
            connection.send(http_reply())
        elif kind < 0.6:
            connection.send(STREAM_HEAD, chunk(EVENT))
        elif kind < 0.7:
            connection.send(http_reply(b"", 400))

    engines = [await fleet.engine(whatever, owner="vllm") for _ in range(2)]
    proxy = await fleet.proxy(*engines, refresh_seconds=0.1)
    left = iter(range(count))

    async def disconnects_at_random() -> None:
        for _ in left:
            async with Call(proxy.url, CHAT, chat(stream=True)) as call:
                call.send()
                await asyncio.sleep(random.choice((0, 0, 0.001, 0.005, 0.02)))
                await random.choice((call.leave, call.reset))()

    await asyncio.gather(*(disconnects_at_random() for _ in range(20)))
    await eventually(proxy.is_at_rest)
    await eventually(lambda: not sum(engine.open_requests for engine in engines))
    for engine in engines:
        engine.answer = answers_with(STREAM_HEAD, chunk(EVENT))
        await proxy.becomes(engine, "up")
    async with AsyncExitStack() as stack:
        for _ in range(10):
            call = await stack.enter_async_context(proxy.call())
            call.send()
            assert await call.head() == 200
        assert await proxy.metric("requests_in_flight") == 10 == sum(engine.open_requests for engine in engines)
    await eventually(proxy.is_at_rest)
    for engine in engines:
        assert await samples_of(proxy, "requests_in_flight", engine) == ["0.0"]


# --- what clients and operators see


async def breaks(connection: EngineConnection) -> None:
    connection.reset()


async def is_waiting(proxy: RunningProxy, count: int) -> bool:
    return await proxy.metric("queue_requests") == count


ERRORS: dict[str, tuple[int, str, Answer, dict[str, object]]] = {
    "all down": (503, "no_backend_available", OK_REPLY, {}),
    "unknown model": (404, "model_not_found", OK_REPLY, {}),
    "body too long": (413, "body_too_large", OK_REPLY, {"max_request_body_bytes": 10}),
    "no key": (401, "invalid_api_key", OK_REPLY, {"api_keys": f"client:{'s' * 32}"}),
    "engine broke": (502, "backend_disconnected", breaks, {}),
    "no HTTP": (502, "invalid_backend_reply", answers_with(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"), {}),
    "no answer": (504, "backend_timeout", hangs, {"backend_first_byte_timeout_seconds": 0.1}),
    "no time left": (504, "request_timeout", hangs, {"request_timeout_seconds": 0.1}),
    "queue full": (429, "queue_full", hangs, {"max_queued_requests": 0}),
    "waited too long": (503, "queue_timeout", hangs, {"queue_timeout_seconds": 0.1}),
    "overloaded": (503, "overloaded", hangs, {"max_requests_in_flight": 1}),
}
PATHS = ["/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/embeddings"]
NEEDS_ANOTHER = {"queue full", "waited too long", "overloaded"}


@pytest.mark.parametrize("error", ERRORS)
async def test_ob16_every_error_of_the_proxy_has_the_format_of_its_path(fleet: Fleet, error: str) -> None:
    status, code, answer, settings = ERRORS[error]
    engine = await fleet.engine(answer, owner="vllm" if error == "unknown model" else "llamacpp")
    engine.slots = 1
    url = unused_url() if error == "all down" else engine.url
    proxy = await fleet.proxy(url, backend_queue_allowance=0, **settings)
    body = chat(model="other" if error == "unknown model" else "m")
    async with AsyncExitStack() as stack:
        if error in NEEDS_ANOTHER:
            first = await stack.enter_async_context(proxy.call())
            first.send()
            await eventually(lambda: len(engine.served) == 1)
        for path in PATHS:
            reply = await send(proxy.url, path, body, headers={"x-request-id": "mine.1"})
            assert reply.status == status
            assert reply.complete
            assert int(reply.headers["content-length"]) == len(reply.body)
            assert reply.headers["content-type"].partition(";")[0] == "application/json"
            assert reply.headers["x-request-id"] == "mine.1"
            assert "x-backend" not in reply.headers
            assert ("retry-after" in reply.headers) is (status in (429, 503))
            is_final = status == 504
            assert reply.headers.get("x-should-retry") == ("false" if is_final else None)
            assert_form(reply, path, code)
            assert "127.0.0.1" not in reply.body.decode()
            if error == "engine broke":
                await eventually(lambda: is_not_down(proxy, engine))


async def is_not_down(proxy: RunningProxy, engine: Engine) -> bool:
    return await proxy.state(engine) != "down"


def assert_form(reply: Reply, path: str, code: str) -> None:
    reported = reply.json
    if path == "/v1/messages":
        assert reported.keys() == {"type", "error", "request_id"}
        assert (reported["type"], reported["request_id"], reply.headers["request-id"]) == ("error", "mine.1", "mine.1")
        assert reported["error"].keys() == {"type", "message"}
    else:
        assert reported.keys() == {"error"}
        assert reported["error"].keys() >= {"message", "type", "code", "param"}
        assert reported["error"]["code"] == code
    assert reported["error"]["message"]
    assert re.fullmatch(r"[a-z]+(_[a-z]+)+", reported["error"]["type"])


async def test_ob16_engine_error_is_relayed_unchanged(fleet: Fleet) -> None:
    engine = await fleet.engine(fails_with(500, b"content-type: text/plain\r\nx-own: 1\r\n"))
    proxy = await fleet.proxy(engine)
    for path in PATHS:
        reply = await proxy.post(path)
        assert (reply.status, reply.body, reply.headers["content-type"]) == (500, b'{"error": "its own"}', "text/plain")
        assert (reply.headers["x-own"], reply.headers["x-backend"]) == ("1", engine.url)


async def test_ob17_metrics_answer_at_once_under_any_load(tmp_path: Path) -> None:
    async with Engine(hangs, owner="vllm") as engine, AsyncExitStack() as stack:
        async with program(tmp_path, engine, DRAIN_TIMEOUT_SECONDS="0") as proxy:
            for _ in range(300):
                call = await stack.enter_async_context(proxy.call())
                call.send()
            await eventually(lambda: len(engine.served) == 300)
            began = proxy.cpu_seconds
            for _ in range(20):
                assert (await send(proxy.url, "/metrics")).status == 200
            assert proxy.cpu_seconds - began < 20 * 0.05
            assert await proxy.metric("requests_in_flight") == 300


async def test_ob19_ejected_backend_is_visible_in_admin_metrics_and_one_log_line(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    failing, other = await fleet.engine(fails_with(500)), await fleet.engine(fails_with(400))
    proxy = await fleet.proxy(failing, other, refresh_seconds=0.1, admin_key=ADMIN_KEY)

    async def is_suspect() -> bool:
        await asyncio.gather(*(proxy.post() for _ in range(6)))
        return await proxy.state(failing) == "suspect"

    await eventually(is_suspect)
    reply = await send(proxy.url, "/admin/backends", headers={"Authorization": f"Bearer {ADMIN_KEY}"})
    ejected, well = reply.json["backends"]
    reason = "5 requests in a row failed, the last one because it answered 500"
    assert (ejected["url"], ejected["state"], ejected["reason"]) == (failing.url, "suspect", reason)
    assert ejected["takes_requests"] is False
    assert abs(time.time() - ejected["since"]) < 5
    assert (well["state"], well["reason"], well["takes_requests"]) == ("up", "", True)
    for state in ("starting", "up", "busy", "suspect", "down"):
        expected = float(state == "suspect")
        assert await proxy.metric("backend_state", backend=failing.url, state=state) == expected
    assert await proxy.metric("backend_ready", backend=failing.url) == 0
    reported = [record.getMessage() for record in caplog.records if "suspect" in record.getMessage()]
    assert reported == [f"backend {failing.url} is suspect: {reason}"]
