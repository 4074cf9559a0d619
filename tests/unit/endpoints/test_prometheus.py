from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from inference_engine_proxy_server import __version__
from inference_engine_proxy_server.endpoints.prometheus import MetricsPage
from inference_engine_proxy_server.processes.siblings import Siblings
from inference_engine_proxy_server.telemetry.exposition import Labels
from support.engine import answers_with
from support.fakes.engine import http_reply
from support.fleet import Fleet
from support.live_proxy import Proxy
from support.ports import unused_url
from support.router import ScriptedRouter
from support.waiting import eventually

PAGE = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text()
OF_SOME_POLICIES = re.compile(
    r"^## (?:Prompts|Shadow policy)\n.*?(?=^## )", re.MULTILINE | re.DOTALL
)  # tested end to end
DOCUMENTED = {
    name: (kind, frozenset(re.findall(r"`(\w+)`", labels)))
    for name, kind, labels in re.findall(
        r"^\| `(\w+)` \| (\w+) \| ([^|]*)\| [^|]+ \|$", OF_SOME_POLICIES.sub("", PAGE), re.MULTILINE
    )
}
REQUESTS = "inference_proxy_requests_total"
ABORTS = "inference_proxy_stream_aborts_total"
RETRIES = "inference_proxy_retries_total"
CHAT = "/v1/chat/completions"

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def _families(proxy: Proxy) -> list[Metric]:
    reply = await proxy.http.get("/metrics")
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/plain; version=")
    return list(text_string_to_metric_families(reply.text))


async def _samples(proxy: Proxy) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in await _families(proxy)
        for sample in family.samples
    }


def _value(samples: Samples, name: str, **labels: str) -> float | None:
    """The sum of the samples with these labels; ``None`` if there are none."""
    found = [value for (shown, pairs), value in samples.items() if shown == name and labels.items() <= pairs]
    return sum(found) if found else None


async def _requests(proxy: Proxy) -> dict[tuple[str, str, str], float]:
    """Numbers of completed requests by route, backend and code, except for this one."""
    return {
        (labels["route"], labels["backend"], labels["code"]): value
        for (name, pairs), value in (await _samples(proxy)).items()
        if name == REQUESTS and (labels := dict(pairs))
    }


async def test_every_metric_is_documented_with_its_type_and_labels_and_nothing_else_is(
    fleet: Fleet, tmp_path: Path
) -> None:
    engine = await fleet.engine(models=[{"id": "m", "object": "model", "meta": {"n_ctx": 1000}}])
    usual, engine.answer = engine.answer, answers_with(http_reply(b'{"usage":{"prompt_tokens":1}}'))
    gone = await fleet.engine(
        owner="vllm", models=[{"id": "m", "max_model_len": 2000}, {"id": "lost", "object": "model"}]
    )
    router = await fleet.stack.enter_async_context(ScriptedRouter())
    router.load("a")
    proxy = await fleet.proxy(
        engine,
        gone,
        router,
        usage_file=str(tmp_path / "usage.db"),
        memory_limit_bytes=2**40,
        state_url="redis://127.0.0.1:1",
        fleet_file="models: {lost: {fallbacks: [a]}}",
    )
    await eventually(lambda: _has(proxy, "inference_proxy_backend_differences"))  # before a backend is down
    await gone.stop()
    engine.processing = 1
    for _ in range(20):  # one of two equal backends is picked at random, so a retry is certain after some requests
        await proxy.http.post(CHAT, json={})
    await proxy.http.post(CHAT, json={"model": "lost"})
    engine.answer = usual
    engine.freed.clear()
    engine.begins = True
    engine.held.clear()
    _, writer = await proxy.connect()
    writer.write(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n")
    await engine.held.wait()
    writer.close()
    await eventually(lambda: _has(proxy, ABORTS))

    shown: dict[str, tuple[str, frozenset[str]]] = {}
    for family in await _families(proxy):
        assert family.documentation, family.name
        assert family.samples, family.name
        labels = frozenset(name for sample in family.samples for name in sample.labels) - {"le"}
        shown[family.name + "_total" * (family.type == "counter")] = (family.type, labels)

    assert shown == DOCUMENTED


async def test_each_request_is_counted_once_by_route_backend_and_code(fleet: Fleet) -> None:
    engine = await fleet.engine()
    proxy = await fleet.proxy(engine)
    assert await _requests(proxy) == {}

    for path in (CHAT, CHAT, "/v1/messages", "/any/thing", "/v1/chat/completions/x"):
        await proxy.http.post(path, json={})
    await proxy.http.post(CHAT, json={}, headers={"x-request-id": "mine"})
    await proxy.http.get("/v1/models")
    await proxy.http.post("/sleep")

    assert await _requests(proxy) == {
        ("chat_completions", engine.url, "200"): 3,
        ("messages", engine.url, "200"): 1,
        ("other", engine.url, "200"): 2,
        ("models", "", "200"): 1,
        ("other", "", "403"): 1,
        ("other", "", "200"): 1,  # the first request for the metrics
    }


async def test_request_without_an_available_backend_is_counted(fleet: Fleet) -> None:
    proxy = await fleet.proxy(unused_url())

    await proxy.http.post(CHAT, json={})

    assert await _requests(proxy) == {("chat_completions", "", "503"): 1}


async def test_unreadable_request_is_counted(fleet: Fleet) -> None:
    proxy = await fleet.proxy(await fleet.engine())
    reader, writer = await proxy.connect()

    writer.write(b"nonsense\r\n\r\n")

    await reader.read()
    assert await _requests(proxy) == {("other", "", "400"): 1}
    writer.close()


async def test_client_that_leaves_before_its_reply_is_counted_as_499(fleet: Fleet) -> None:
    engine = await fleet.engine()
    proxy = await fleet.proxy(engine)
    engine.freed.clear()
    _, writer = await proxy.connect()
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}")
    await engine.held.wait()

    writer.close()

    await eventually(lambda: _has(proxy, REQUESTS, route="completions", backend=engine.url, code="499"))
    samples = await _samples(proxy)
    assert _value(samples, REQUESTS, route="completions", backend=engine.url, code="499") == 1
    assert _value(samples, "inference_proxy_request_duration_seconds_count", route="completions") == 1
    assert _value(samples, "inference_proxy_time_to_first_token_seconds_count", route="completions") == 0
    assert not any(name == ABORTS for name, _ in samples)


@pytest.mark.parametrize("side", ["client", "backend"])
async def test_unfinished_reply_is_counted_by_the_side_that_ended_it(fleet: Fleet, side: str) -> None:
    engine = await fleet.engine(begins=True)
    proxy = await fleet.proxy(engine)
    engine.freed.clear()
    reader, writer = await proxy.connect()
    writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}")
    await reader.readuntil(b"\r\n\r\n")

    if side == "client":
        writer.close()
    else:
        engine.drop_clients()

    await eventually(lambda: _has(proxy, ABORTS, side=side))
    samples = await _samples(proxy)
    assert _value(samples, ABORTS, side=side) == 1
    assert _value(samples, REQUESTS, route="completions", backend=engine.url, code="200") == 1
    assert _value(samples, "inference_proxy_request_duration_seconds_count", route="completions") == 1
    writer.close()


async def test_repeated_request_is_one_request_and_one_retry(fleet: Fleet) -> None:
    gone, stays = await fleet.engine(), await fleet.engine(processing=3)
    proxy = await fleet.proxy(gone, stays)
    await gone.stop()

    await proxy.http.post(CHAT, json={})

    samples = await _samples(proxy)
    assert _value(samples, RETRIES, reason="backend_unreachable") == 1
    assert {pairs for name, pairs in samples if name == REQUESTS} == {
        frozenset({"route": "chat_completions", "model": "m", "backend": stays.url, "code": "200"}.items())
    }


async def test_no_label_grows_with_what_clients_send(fleet: Fleet) -> None:
    proxy = await fleet.proxy(await fleet.engine())

    async def send(first: int) -> set[tuple[str, frozenset[tuple[str, str]]]]:
        for number in range(first, first + 20):
            fields = {"x-request-id": f"id-{number}", "user-agent": f"agent/{number}"}
            await proxy.http.request(f"M{number}", f"/path-{number}?q={number}", headers=fields)
            await proxy.http.post(CHAT, json={"model": f"model-{number}"})
        await proxy.http.get("/metrics")
        return set(await _samples(proxy))

    assert await send(0) == await send(20)


async def test_durations_are_cumulative_histograms_of_each_route(fleet: Fleet) -> None:
    proxy = await fleet.proxy(await fleet.engine())
    for _ in range(3):
        await proxy.http.post(CHAT, json={})

    samples = await _samples(proxy)

    name = "inference_proxy_request_duration_seconds"
    buckets = {
        dict(labels)["le"]: value
        for (sample, labels), value in samples.items()
        if sample == f"{name}_bucket" and ("route", "chat_completions") in labels
    }
    assert list(buckets)[-1] == "+Inf"
    assert list(buckets.values()) == sorted(buckets.values())
    assert buckets["+Inf"] == _value(samples, f"{name}_count", route="chat_completions") == 3
    total = _value(samples, f"{name}_sum", route="chat_completions")
    assert total is not None
    assert 0 < total < 60


async def test_gauges_show_the_state_of_each_backend(fleet: Fleet) -> None:
    ready, busy, gone = await fleet.engine(processing=2, waiting=1), await fleet.engine(processing=7), unused_url()
    proxy = await fleet.proxy(ready, busy, gone)

    samples = await _samples(proxy)

    def values(name: str) -> list[float | None]:
        return [_value(samples, f"inference_proxy_{name}", backend=url) for url in (ready.url, busy.url, gone)]

    assert values("backend_live") == [1, 1, 0]
    assert values("backend_ready") == [1, 0, 0]
    assert values("backend_requests_running") == [2, 7, None]
    assert values("backend_requests_waiting") == [1, 0, None]
    assert values("backend_load") == [3, 7, 0]
    assert values("requests_in_flight") == [0, 0, 0]
    details = (await proxy.health())["details"]
    assert values("backend_state_timestamp_seconds") == [detail["metrics"]["timestamp"] for detail in details]
    assert _value(samples, "inference_proxy_build_info", version=__version__) == 1


async def _has(proxy: Proxy, name: str, **labels: str) -> bool:
    samples = await _samples(proxy)
    return any(name == shown and labels.items() <= dict(pairs).items() for shown, pairs in samples)


async def test_the_page_is_written_in_slices() -> None:
    """Other tasks run while a long page is written."""
    turns = 0

    def long_family() -> Iterator[str]:
        yield "# HELP long Long.\n# TYPE long gauge\n"
        for number in range(20):
            before = turns
            ends = time.perf_counter() + 0.002
            while time.perf_counter() < ends:
                pass
            yield f'long{{number="{number}"}} {turns - before}\n'

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.get_running_loop().create_task(other())
    page = await MetricsPage([long_family], Siblings(), Labels()).text()
    task.cancel()
    assert turns >= 20
    assert page.count(b"long{number=") == 20
    assert b"process_cpu_seconds_total " in page
