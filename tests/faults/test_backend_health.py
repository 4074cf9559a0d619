"""Backends that look healthy or unhealthy but are not, and backends that come and go."""

from __future__ import annotations

import asyncio
import re
import time

import pytest

from faults.conftest import OTHER
from support.engine import EVENT, LOADING, STREAM_HEAD, Engine, answers_with, chunk, fails_with, hangs
from support.fakes.engine import EngineConnection, Script, http_reply
from support.fleet import Fleet
from support.http_client import Reply
from support.running_proxy import RunningProxy
from support.waiting import eventually

OK_REPLY = answers_with(http_reply())


async def served_by(proxy: RunningProxy, count: int) -> list[str]:
    """The backends that answer ``count`` sequential requests."""
    replies = [await proxy.post() for _ in range(count)]
    assert {reply.status for reply in replies} == {200}
    return [reply.headers["x-backend"] for reply in replies]


async def test_bf26_backend_that_loads_its_model_gets_no_request_and_is_not_failing(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    loading, other = await fleet.engine(answers_with(LOADING)), await fleet.engine(processing=5)
    loading.health = answers_with(LOADING)
    proxy = await fleet.proxy(loading, other, refresh_seconds=0.05)
    detail = await proxy.backend(loading)
    assert (detail["state"], detail["reason"], detail["live"]) == ("starting", "loading its model", False)
    assert set(await served_by(proxy, 10)) == {other.url}

    loading.health = OK_REPLY
    loading.answer = OK_REPLY
    await proxy.becomes(loading, "up")
    assert set(await served_by(proxy, 10)) == {loading.url}  # its full share at once
    assert await proxy.metric("retries_total") == 0
    assert not [record for record in caplog.records if record.levelname != "INFO"]


async def test_bf27_healthy_page_before_the_engine_is_ready_fails_no_request(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    early, other = await fleet.engine(answers_with(LOADING)), await fleet.engine(processing=5)
    proxy = await fleet.proxy(early, other, refresh_seconds=0.05)
    assert set(await served_by(proxy, 4)) == {other.url}
    assert 1 <= len(early.served) <= 4
    assert await proxy.retries("backend_declined") == len(early.served)

    early.answer = OK_REPLY
    await eventually(lambda: got_one(proxy, early))
    assert await proxy.state(early) == "up"
    assert "is down" not in caplog.text
    assert "is suspect" not in caplog.text


async def got_one(proxy: RunningProxy, engine: Engine) -> bool:
    return await served_by(proxy, 1) == [engine.url]


@pytest.mark.parametrize("refresh_seconds", [0.1, 0.5])
async def test_bf28_busy_engine_is_not_down(fleet: Fleet, refresh_seconds: float) -> None:
    """If its health page hangs while tokens flow, a backend is only the last choice."""
    is_over = asyncio.Event()

    async def streams(connection: EngineConnection) -> None:
        connection.send(STREAM_HEAD)
        while not is_over.is_set():
            connection.send(chunk(EVENT))
            await asyncio.sleep(0.02)
        connection.send(b"0\r\n\r\n")

    busy, other = await fleet.engine(streams), await fleet.engine(processing=5)
    proxy = await fleet.proxy(busy, other, refresh_seconds=refresh_seconds)
    async with proxy.call() as call:
        call.send()
        assert await call.head() == 200
        busy.health = hangs
        await proxy.becomes(busy, "busy")
        busy_since = time.monotonic()
        assert set(await served_by(proxy, 4)) == {other.url}
        while time.monotonic() < busy_since + 1.8:  # without tokens, it would be down by now
            detail = await proxy.backend(busy)
            assert (detail["state"], detail["ready"]) == ("busy", True), detail
            assert await call.event() == EVENT
            await asyncio.sleep(0.1)
        is_over.set()
        reply = await call.reply()
    assert (reply.complete, len(busy.served)) == (True, 1)
    assert await proxy.metric("stream_aborts_total") == 0


async def test_bf28_only_backend_is_used_while_busy_until_it_is_silent_for_too_long(fleet: Fleet) -> None:
    busy = await fleet.engine()
    proxy = await fleet.proxy(busy, refresh_seconds=0.5)
    busy.health = hangs
    await proxy.becomes(busy, "busy")
    assert (await proxy.post()).status == 200
    await proxy.becomes(busy, "down")
    assert (await proxy.backend(busy))["reason"] == "it has been silent for too long"
    assert (await proxy.post()).status == 503


async def freeze(engine: Engine) -> None:
    """It reports pending work but makes no progress."""
    engine.answer = hangs
    engine.processing = 1


async def test_bf29_requests_on_a_stuck_engine_move_to_others(fleet: Fleet) -> None:
    frozen, other = await fleet.engine(), await fleet.engine(processing=5)
    limits = {"suspect_after_seconds": 0.6, "backend_first_byte_timeout_seconds": 3}
    proxy = await fleet.proxy(frozen, other, refresh_seconds=0.2, **limits)
    await freeze(frozen)
    async with asyncio.TaskGroup() as group:
        movable = [group.create_task(proxy.post()) for _ in range(3)]
        bound = group.create_task(proxy.post(OTHER))
        await proxy.becomes(frozen, "suspect")
        assert re.fullmatch(r"nothing has moved there for \d s", (await proxy.backend(frozen))["reason"])
        for reply in await asyncio.gather(*movable):
            assert (reply.status, reply.headers["x-backend"]) == (200, other.url)
        assert not bound.done()  # the other requests did not wait for the first-byte deadline
    assert set(await served_by(proxy, 5)) == {other.url}
    assert (bound.result().status, bound.result().json["error"]["code"]) == (504, "backend_timeout")
    assert len(frozen.served) == 4
    assert not [request for request in other.served if OTHER.encode() in request]
    assert await proxy.retries("request_moved") == 3

    frozen.answer = OK_REPLY
    frozen.decoded += 1  # it makes progress again
    await proxy.becomes(frozen, "up")


async def test_bf29_two_timeouts_in_a_row_mean_stuck_without_a_progress_counter(fleet: Fleet) -> None:
    frozen, other = await fleet.engine(hangs, owner="unknown-engine"), await fleet.engine(processing=5)
    proxy = await fleet.proxy(frozen, other, refresh_seconds=0.1, backend_first_byte_timeout_seconds=0.2)
    replies = []
    async with asyncio.timeout(10):
        while await proxy.state(frozen) == "up":
            replies.append(await proxy.post())
    assert [reply.status for reply in replies].count(504) == 2
    assert (await proxy.backend(frozen))["state"] == "suspect"
    assert set(await served_by(proxy, 5)) == {other.url}


@pytest.mark.slow_faults
async def test_bf29_one_trial_request_tests_a_suspect(fleet: Fleet) -> None:
    frozen, other = await fleet.engine(), await fleet.engine(processing=5)
    limits = {"suspect_after_seconds": 0.6, "backend_first_byte_timeout_seconds": 0.5}
    proxy = await fleet.proxy(frozen, other, refresh_seconds=0.2, **limits)
    frozen.answer = fails_with(500)
    while await proxy.state(frozen) == "up":
        await proxy.post(OTHER)
    suspect_since = time.monotonic()
    frozen.answer = hangs
    before = len(frozen.served)
    statuses = []
    while len(frozen.served) == before:
        statuses += [reply.status for reply in await asyncio.gather(*(proxy.post() for _ in range(5)))]
        await asyncio.sleep(0.05)
    assert 4.5 < time.monotonic() - suspect_since < 8
    assert len(frozen.served) == before + 1
    assert statuses.count(504) == 1
    assert await proxy.state(frozen) == "suspect"


async def test_bf30_fast_failures_attract_no_requests(fleet: Fleet) -> None:
    async def takes_its_time(connection: EngineConnection) -> None:
        await asyncio.sleep(0.05)
        connection.send(http_reply())

    failing, working = await fleet.engine(fails_with(503)), await fleet.engine(takes_its_time)
    proxy = await fleet.proxy(failing, working, refresh_seconds=0.1)

    async def ask_ten_times() -> list[Reply]:
        return [await proxy.post() for _ in range(10)]

    replies = [reply for some in await asyncio.gather(*(ask_ten_times() for _ in range(10))) for reply in some]

    assert [reply.status for reply in replies].count(200) >= 95
    assert len(failing.served) <= 10  # at most five more are in flight when the fifth fails
    detail = await proxy.backend(failing)
    assert (detail["state"], detail["reason"][:31]) == ("suspect", "5 requests in a row failed, the")
    assert await proxy.metric("backend_state", backend=failing.url, state="suspect") == 1


async def test_bf31_client_errors_are_not_backend_failures(fleet: Fleet) -> None:
    error = http_reply(b'{"error": {"message": "context too long"}}', 400, b"content-type: application/json\r\n")
    strict, other = await fleet.engine(answers_with(error)), await fleet.engine(processing=5)
    proxy = await fleet.proxy(strict, other, refresh_seconds=0.1)
    for _ in range(100):
        reply = await proxy.post()
        assert (reply.status, reply.body) == (400, error.partition(b"\r\n\r\n")[2])
    assert len(strict.served) == 100
    detail = await proxy.backend(strict)
    assert (detail["state"], detail["ready"]) == ("up", True)
    assert await proxy.metric("retries_total") == 0
    assert await proxy.metric("requests_total", backend=strict.url, code="400") == 100


@pytest.mark.parametrize("status", [429, 503])
async def test_bf32_backend_that_asks_for_a_pause_gets_it_and_others_answer(fleet: Fleet, status: int) -> None:
    tired, other = await fleet.engine(fails_with(status, b"Retry-After: 1\r\n")), await fleet.engine(processing=5)
    proxy = await fleet.proxy(tired, other, refresh_seconds=0.1)
    began = time.monotonic()
    assert set(await served_by(proxy, 10)) == {other.url}
    assert len(tired.served) == 1
    assert (await proxy.backend(tired))["reason"] == "it asked for a pause"
    assert await proxy.retries("backend_declined") == 1
    tired.answer = OK_REPLY
    await proxy.becomes(tired, "up")
    assert time.monotonic() - began > 0.9


async def test_bf32_pause_of_all_backends_is_passed_on_to_the_client(fleet: Fleet) -> None:
    engines = [await fleet.engine(fails_with(429, b"Retry-After: 17\r\n")) for _ in range(2)]
    proxy = await fleet.proxy(*engines)
    reply = await proxy.post()
    assert (reply.status, reply.headers["retry-after"], reply.body) == (429, "17", b'{"error": "its own"}')
    assert reply.headers["x-backend"] in {engine.url for engine in engines}
    assert sum(len(engine.served) for engine in engines) == 2


async def test_bf33_flapping_backend_is_suspended_at_its_third_fall(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    flapping, other = await fleet.engine(), await fleet.engine()
    proxy = await fleet.proxy(flapping, other, refresh_seconds=0.1)
    for fall in (1, 2, 3):
        await flapping.go()
        await proxy.becomes(flapping, "down")
        await flapping.listen_again()
        await proxy.becomes(flapping, "up" if fall < 3 else "suspect")
    assert (await proxy.backend(flapping))["reason"] == "it keeps failing"
    assert set(await served_by(proxy, 10)) == {other.url}
    lines = [record.message for record in caplog.records if flapping.url in record.message]
    assert len([line for line in lines if "its engine is" not in line]) == 1 + 2 * 3  # one line for each change


async def test_bf34_dead_fleet_is_503_at_once_and_recovers_by_itself(fleet: Fleet) -> None:
    engines = [await fleet.engine() for _ in range(3)]
    proxy = await fleet.proxy(*engines, refresh_seconds=0.3)
    assert (await proxy.post()).status == 200
    for engine in engines:
        await engine.go()
        engine.die()
    for _ in range(20):
        reply = await proxy.post()
        assert (reply.status, reply.json["error"]["code"]) == (503, "no_backend_available")
        assert int(reply.headers["retry-after"]) >= 1
    assert (await proxy.http.get("/readyz")).status_code == 503
    health = await proxy.health()
    assert (health["status"], health["available_backends"]) == ("unavailable", [])

    await engines[1].listen_again()
    await eventually(lambda: is_served(proxy))


async def is_served(proxy: RunningProxy) -> bool:
    return (await proxy.post()).status == 200


async def test_bf35_failing_backends_stay_in_rotation_when_too_few_would_be_left(fleet: Fleet) -> None:
    engines = [await fleet.engine(fails_with(500)) for _ in range(4)]
    proxy = await fleet.proxy(*engines, refresh_seconds=0.1)
    for _ in range(80):
        reply = await proxy.post()
        assert (reply.status, reply.body) == (500, b'{"error": "its own"}')  # not a 503 of the proxy
    states = [await proxy.state(engine) for engine in engines]
    assert sorted(states) == ["suspect", "suspect", "up", "up"]

    # When the remaining backends go down too, only the suspects are left.
    for engine, state in zip(engines, states, strict=True):
        engine.answer = OK_REPLY
        if state == "up":
            await engine.go()
            engine.die()
            await proxy.becomes(engine, "down")
    replies = [await proxy.post() for _ in range(4)]
    assert [reply.status for reply in replies] == [200] * 4


async def test_bf42_different_service_at_the_address_is_never_up(
    fleet: Fleet, caplog: pytest.LogCaptureFixture
) -> None:
    banner, alert, other = await fleet.engine(), await fleet.engine(), await fleet.engine()
    banner.script = sends_and_closes(b"SSH-2.0-OpenSSH_9.2\r\nInvalid SSH identification string.\r\n")
    alert.script = sends_and_closes(b"\x15\x03\x01\0\x02\x02(")
    proxy = await fleet.proxy(banner, alert, other, refresh_seconds=0.1)
    await asyncio.sleep(0.5)
    for engine in (banner, alert):
        detail = await proxy.backend(engine)
        assert (detail["state"], detail["live"]) == ("down", False)
        assert [record.levelname for record in caplog.records if engine.url in record.message] == ["WARNING"]
    assert set(await served_by(proxy, 10)) == {other.url}
    assert await proxy.metric("retries_total") == 0


def sends_and_closes(content: bytes) -> Script:
    async def script(connection: EngineConnection) -> None:
        await connection.first_bytes()
        connection.send(content)
        connection.finish()

    return script


async def test_bf42_backend_replaced_by_a_different_service_is_502(fleet: Fleet) -> None:
    engine = await fleet.engine(answers_with(b"SSH-2.0-OpenSSH_9.2\r\n\r\n"))
    proxy = await fleet.proxy(engine)
    reply = await proxy.post()
    assert (reply.status, reply.json["error"]["code"]) == (502, "invalid_backend_reply")
    assert b"SSH" not in reply.body


async def test_bf45_restarted_backend_has_no_load_left_and_starts_slowly(fleet: Fleet) -> None:
    restarted, other = await fleet.engine(hangs), await fleet.engine(processing=5)
    proxy = await fleet.proxy(restarted, other, refresh_seconds=0.1, slow_start_seconds=1000)
    async with asyncio.TaskGroup() as group:
        lost = [group.create_task(proxy.post(OTHER)) for _ in range(3)]
        await eventually(lambda: len(restarted.served) == 3)
        restarted.processing, restarted.decoded = 3, 1000
        await eventually(lambda: has_load(proxy, restarted, 3))
        await restarted.go()
        restarted.die()
    assert {task.result().status for task in lost} == {502}
    assert await proxy.metric("requests_in_flight", backend=restarted.url) == 0
    await proxy.becomes(restarted, "down")

    restarted.processing = restarted.decoded = other.processing = 0
    restarted.answer = OK_REPLY
    await restarted.listen_again()
    await proxy.becomes(restarted, "up")
    await eventually(lambda: has_load(proxy, restarted, 0))
    await eventually(lambda: has_load(proxy, other, 0))
    assert (await served_by(proxy, 60)).count(restarted.url) < 20  # a tenth of its share; its full share would be half


async def has_load(proxy: RunningProxy, engine: Engine, load: int) -> bool:
    return await proxy.metric("backend_load", backend=engine.url) == load
