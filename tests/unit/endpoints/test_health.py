from __future__ import annotations

import time
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from inference_engine_proxy_server.endpoints.health import health_router
from inference_engine_proxy_server.endpoints.health_report import HealthReport
from inference_engine_proxy_server.tasks.deadlines import Deadlines
from support.clocked_pool import BUSY, Clock, ready, suspend
from support.clocked_pool import make_pool as clocked_pool
from support.clocked_pool import publish as publish_one
from support.fleet import Fleet
from support.live_proxy import Proxy
from support.pools import Pool, make_pool, publish
from support.ports import unused_url
from support.waiting import eventually

OWN = ("/", "/health", "/livez", "/readyz", "/v1/models", "/metrics", "/docs", "/redoc", "/openapi.json")


@pytest.mark.parametrize(
    ("processing", "status", "ready"),
    [
        pytest.param([0, 6], "ok", [True, True], id="all ready"),
        pytest.param([0, 7], "degraded", [True, False], id="one busy"),
        pytest.param([0, None], "degraded", [True, False], id="one down"),
        pytest.param([7, 8], "unavailable", [False, False], id="all busy"),
        pytest.param([None, None], "unavailable", [False, False], id="all down"),
    ],
)
async def test_health_is_200_and_shows_how_much_of_the_fleet_is_ready(
    fleet: Fleet, processing: list[int | None], status: str, ready: list[bool]
) -> None:
    urls = [unused_url() if count is None else (await fleet.engine(processing=count)).url for count in processing]
    proxy = await fleet.proxy(*urls)

    reply = await proxy.http.get("/health")

    assert (reply.status_code, reply.headers["content-type"]) == (200, "application/json")
    health = reply.json()
    assert health["status"] == status
    assert [detail["ready"] for detail in health["details"]] == ready
    assert health["available_backends"] == [url for url, is_ready in zip(urls, ready, strict=True) if is_ready]


async def test_health_has_every_key_of_the_contract_with_its_type(fleet: Fleet) -> None:
    engine, gone = await fleet.engine(processing=2, waiting=1), unused_url()
    before = time.time()
    proxy = await fleet.proxy(engine, gone)

    health = await proxy.health()

    assert health["available_backends"] == [engine.url]
    assert health["total_backends"] == 2
    assert before <= health["timestamp"] <= time.time()
    assert [detail["backend"] for detail in health["details"]] == [engine.url, gone]
    for detail in health["details"]:
        assert _types(detail) >= {("backend", str), ("ready", bool), ("metrics", dict)}
        metrics = detail["metrics"]
        assert _types(metrics) >= {("timestamp", float), ("requests_processing", float), ("ready", bool)}
        assert before <= metrics["timestamp"] <= health["timestamp"]
        assert metrics["ready"] is detail["ready"]


async def test_health_shows_reasons(fleet: Fleet) -> None:
    busy, gone = await fleet.engine(processing=7, waiting=2), unused_url()
    proxy = await fleet.proxy(busy, gone)

    of_busy, of_gone = (await proxy.health())["details"]

    assert (of_busy["live"], of_busy["reason"]) == (True, "busy: 7 requests processing, limit 6")
    assert (of_busy["models"], of_busy["requests_in_flight"]) == (["m"], 0)
    assert of_busy["metrics"]["requests_processing"] == 7.0
    assert of_busy["metrics"]["requests_waiting"] == 2.0
    assert of_busy["metrics"]["llamacpp:tokens_predicted_total"] == 190.0
    assert (of_gone["live"], of_gone["models"]) == (False, [])
    assert of_gone["reason"].startswith("it cannot be reached, because nothing listens there")


async def test_health_counts_the_requests_of_this_proxy(fleet: Fleet) -> None:
    engine = await fleet.engine()
    proxy = await fleet.proxy(engine)
    engine.freed.clear()
    _, writer = await proxy.connect()
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}")
    await engine.held.wait()
    assert (await proxy.health())["details"][0]["requests_in_flight"] == 1

    writer.close()

    await eventually(lambda: _nothing_in_flight(proxy))


async def test_own_paths_are_answered_from_memory(fleet: Fleet) -> None:
    engine = await fleet.engine()
    proxy = await fleet.proxy(engine)
    polls = set(engine.asked)

    for path in OWN:
        assert (await proxy.http.get(path)).status_code == 200, path

    assert set(engine.asked) == polls


async def test_head_of_an_own_path_is_its_get_without_the_body(fleet: Fleet) -> None:
    proxy = await fleet.proxy(await fleet.engine())

    for path in OWN:
        get, head = await proxy.http.get(path), await proxy.http.head(path)

        assert (head.status_code, head.content) == (200, b""), path
        assert head.headers["content-type"] == get.headers["content-type"]
        about_as_long = pytest.approx(len(get.content), rel=0.1)  # timestamps differ
        assert int(head.headers["content-length"]) == about_as_long, path


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_only_get_and_head_of_own_paths_are_answered(fleet: Fleet, method: str) -> None:
    engine = await fleet.engine()
    proxy = await fleet.proxy(engine)

    for path in OWN:
        reply = await proxy.http.request(method, path, content=b"x" if method == "POST" else None)

        assert reply.json() == {"engine": engine.url, "path": path}
        assert (method, path) in [one[:2] for one in engine.asked]  # polls may have come since


async def test_paths_that_only_resemble_own_ones_are_forwarded(fleet: Fleet) -> None:
    engine = await fleet.engine()
    proxy = await fleet.proxy(engine)

    for path in ("/health//", "/healthz", "/%68ealth", "/docs/other.js", "/v1/model/tiny", "//health"):
        reader, writer = await proxy.connect()
        writer.write(f"GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".encode())

        assert b'"engine"' in await reader.read(), path
        assert path in [one[1] for one in engine.asked]
        writer.close()


async def test_own_path_with_a_query_is_answered(fleet: Fleet) -> None:
    proxy = await fleet.proxy(await fleet.engine())

    assert (await proxy.http.get("/health?x=1")).json()["total_backends"] == 1


async def test_livez_is_200_whatever_the_backends_do(fleet: Fleet) -> None:
    proxy = await fleet.proxy(unused_url())

    reply = await proxy.http.get("/livez")

    assert (reply.status_code, reply.json()) == (200, {"status": "ok"})


async def test_fully_busy_fleet_stays_ready_for_load_balancers(fleet: Fleet) -> None:
    proxy = await fleet.proxy(await fleet.engine(processing=7), await fleet.engine(waiting=4))

    assert (await proxy.http.get("/readyz")).status_code == 200


@pytest.mark.parametrize(("draining", "status"), [(False, 200), (True, 503)])
async def test_readyz_is_503_once_the_process_is_stopping(draining: bool, status: int) -> None:
    pool = make_pool(["http://127.0.0.1:1"], Deadlines())
    publish(pool)
    app = FastAPI()
    report = HealthReport(pool.dispatcher, lambda: (), queue_limit=1, needs_key=False, hides_names=False)
    app.include_router(health_router(pool.fleet, report, lambda: draining))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://proxy") as client:
        assert (await client.get("/readyz")).status_code == status


async def test_readyz_is_503_while_no_backend_is_live(fleet: Fleet) -> None:
    engine = await fleet.engine(health=503)
    proxy = await fleet.proxy(engine, unused_url(), refresh_seconds=0.05)
    reply = await proxy.http.get("/readyz")
    assert (reply.status_code, reply.json()) == (503, {"status": "unavailable"})

    engine.health = 200

    await eventually(lambda: _is_ready(proxy))


async def _nothing_in_flight(proxy: Proxy) -> bool:
    return bool((await proxy.health())["details"][0]["requests_in_flight"] == 0)


async def _is_ready(proxy: Proxy) -> bool:
    return (await proxy.http.get("/readyz")).status_code == 200


def _types(members: dict[str, Any]) -> set[tuple[str, type]]:
    return {(name, type(value)) for name, value in members.items()}


async def test_health_shows_null_for_an_unknown_load(fleet: Fleet) -> None:
    known, unknown, gone = await fleet.engine(processing=2), await fleet.engine(owner="other"), unused_url()
    known.slots = 4
    proxy = await fleet.proxy(known, unknown, gone)

    told = (await proxy.health())["details"]

    assert [(one["processing"], one["slots"], one["limit"]) for one in told] == [
        (2.0, 4, 5), (None, None, None), (None, None, None),
    ]  # fmt: skip
    assert [one["metrics"]["requests_processing"] for one in told] == [2.0, 0.0, 0.0]


async def test_health_shows_the_queue_and_whether_a_key_is_needed(fleet: Fleet) -> None:
    engine = await fleet.engine()
    free, guarded = (
        await fleet.proxy(engine, max_queued_requests=7),
        await fleet.proxy(engine, api_keys=("a:0123456789abcdef",)),
    )
    assert (await free.health())["queue"] == {"requests": 0, "limit": 7}
    assert [(await proxy.health())["needs_key"] for proxy in (free, guarded)] == [False, True]


def shown_state(pool: Pool) -> str:
    report = HealthReport(pool.dispatcher, lambda: (), queue_limit=1, needs_key=False, hides_names=False).report(
        has_key=False
    )
    shown: str = report["details"][0]["shown_state"]
    return shown


def test_health_names_each_state_of_a_backend() -> None:
    clock = Clock()
    pool = clocked_pool(clock, 2)
    (backend, _) = pool.backends
    assert shown_state(pool) == "starting"
    publish_one(pool, 0, ready())
    assert shown_state(pool) == "ready"
    pool.report_silence(backend)
    assert shown_state(pool) == "frozen"
    publish_one(pool, 0, BUSY)
    assert shown_state(pool) == "busy"
    pool.set_draining(backend)
    assert shown_state(pool) == "draining"
    pool.set_draining(backend, is_draining=False)
    publish_one(pool, 0, ready())
    suspend(pool, 0)
    assert shown_state(pool) == "suspect"
    pool.report_refused_connection(backend)
    assert shown_state(pool) == "down"


@pytest.mark.parametrize("path", [path for path in OWN if path != "/"])
async def test_slash_at_the_end_of_an_own_path_changes_nothing(fleet: Fleet, path: str) -> None:
    engine = await fleet.engine()
    proxy = await fleet.proxy(engine)
    polls = set(engine.asked)
    replies = [await proxy.http.get(path + end, follow_redirects=True) for end in ("", "/")]
    assert [reply.status_code for reply in replies] == [200, 200]
    assert replies[0].headers["content-type"] == replies[1].headers["content-type"]
    assert set(engine.asked) == polls


async def test_favicon_is_answered_by_the_proxy(fleet: Fleet) -> None:
    engine = await fleet.engine()
    proxy = await fleet.proxy(engine, api_keys=("a:0123456789abcdef",))
    reply = await proxy.http.get("/favicon.ico")
    assert (reply.status_code, reply.headers["content-type"]) == (200, "image/svg+xml")
    assert ("GET", "/favicon.ico") not in [line[:2] for line in engine.asked]


async def test_slash_at_the_end_needs_the_same_keys(fleet: Fleet) -> None:
    proxy = await fleet.proxy(await fleet.engine(), api_keys=("a:0123456789abcdef",), metrics_key="right")
    for path, status in (("/v1/models/", 401), ("/metrics/", 401), ("/health/", 200)):
        assert (await proxy.http.get(path)).status_code == status
    right = {"authorization": "Bearer right"}
    assert (await proxy.http.get("/metrics/", headers=right)).status_code == 200


@pytest.mark.parametrize("path", ["//v1/chat/completions", "/v1//chat/completions"])
async def test_doubled_slash_is_explained(fleet: Fleet, path: str) -> None:
    engine = await fleet.engine()
    proxy = await fleet.proxy(engine)
    reply = await proxy.post(path, {"model": "m"})
    assert (reply.status, reply.json["error"]["code"]) == (404, "doubled_slash")
    assert "base URL" in reply.json["error"]["message"]
    assert not engine.served


async def test_all_slots_of_a_backend_are_used_by_default(fleet: Fleet) -> None:
    engine = await fleet.engine(processing=9)
    engine.slots = 16
    by_default = await fleet.proxy(engine)
    assert (await by_default.http.post("/v1/chat/completions", json={"model": "m"})).status_code == 200
    chosen = await fleet.proxy(engine, max_allowed_request_queue=6, queue_timeout_seconds=0.1)
    assert (await chosen.http.post("/v1/chat/completions", json={"model": "m"})).status_code == 503


async def test_health_shows_the_sources_of_backends_to_those_who_may_see_names(fleet: Fleet) -> None:
    engine = await fleet.engine()
    keys = {"api_keys": ("a:0123456789abcdef",), "health_details": "key"}
    [told], hidden = (
        (await (await fleet.proxy(engine)).health())["sources"],
        (await (await fleet.proxy(engine, **keys)).health())["sources"],
    )
    assert told.pop("answered_at") > 0
    assert told == {"source": "configuration", "backends": 1, "problem": None}
    assert hidden == []
