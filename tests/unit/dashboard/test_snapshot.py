"""The endpoints of the dashboard over a whole proxy and scripted engines."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.dashboard.feed import MOST_OTHERS
from support.dashboards import ADMIN_KEY, OPERATOR, live, next_snapshot, snapshot_of
from support.engine import STREAM_HEAD, answers_with, chunk, fails_with, hangs
from support.fakes.engine import EngineConnection
from support.fleet import Fleet
from support.http_client import Call, chat, send
from support.waiting import eventually

PAGE = (Path(__file__).parents[3] / "docs" / "dashboard.md").read_text()
CLIENT = {"Authorization": "Bearer secret-of-a-client"}
KEYS = {"api_keys": "alice:secret-of-a-client"}


TOKEN = b'data: {"choices":[{"index":0,"delta":{"content":" token"}}],"id":"%b"}\n\n' % (b"x" * 150)


async def streams_and_hangs(connection: EngineConnection) -> None:
    """Sends a stream of 41 events, and no end."""
    connection.send(STREAM_HEAD + chunk(TOKEN))
    for _ in range(40):
        connection.send(chunk(TOKEN))
    await connection.ended


def keys_of(content: object) -> Iterator[str]:
    """The names of all members of a JSON value, except names that users chose."""
    if isinstance(content, dict):
        for name, member in content.items():
            yield name
            if name not in ("contexts", "model_states"):
                yield from keys_of(member)
    elif isinstance(content, list):
        for item in content:
            yield from keys_of(item)


async def test_every_field_is_documented_and_there_are_no_others(fleet: Fleet) -> None:
    for context in (1000, 2000):
        entry = {"id": "m", "object": "model", "meta": {"n_ctx": context}}
        await fleet.engine(streams_and_hangs, models=[entry])
    proxy = await fleet.proxy(*fleet.engines, admin_key=ADMIN_KEY, stream_resume="off")

    async def is_compared() -> bool:
        return bool((await snapshot_of(proxy))["differences"])

    await eventually(is_compared)
    async with proxy.call() as call:
        call.send()
        await call.head()
        await live(proxy, lambda request: request["phase"] == "decode")
        content = await snapshot_of(proxy)
    await eventually(lambda: sum(engine.open_requests for engine in fleet.engines) == 0)

    async def counts_usage() -> bool:
        return bool((await snapshot_of(proxy))["usage"]["by_model"])

    assert (await snapshot_of(proxy))["usage"].keys() == {"by_model", "by_key"}
    shown = PAGE.partition("## A snapshot")[2].partition("## Cancel a request")[0]
    documented = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`[^|]*) \|", shown, re.MULTILINE))))
    only_sometimes = {
        "most_loaded_models", "model_states",  # of routers
        "name", "input_tokens", "cached_tokens", "output_tokens",  # of usage, after ten seconds
        "key", "requests", "by_key",
    }  # fmt: skip
    assert set(keys_of(content)) - documented == set()
    assert documented - set(keys_of(content)) <= only_sometimes


async def test_operators_see_live_requests_and_others_their_number(fleet: Fleet) -> None:
    engine = await fleet.engine(streams_and_hangs)
    proxy = await fleet.proxy(engine, admin_key=ADMIN_KEY, stream_resume="off", **KEYS)
    async with Call(
        proxy.url, "/v1/chat/completions?a=1", chat(stream=True, model="m"), headers=CLIENT | {"X-Request-Id": "mine"}
    ) as call:
        call.send()
        await call.head()
        request = await live(proxy, lambda request: (request["tokens"] or 0) > 35)
        assert request.pop("age") > 0
        assert request.pop("tokens") == pytest.approx(41, abs=3)
        assert request.pop("tokens_per_second") > 0
        assert request == {
            "id": "mine", "model": "m", "alias": None, "key": "alice", "path": "/v1/chat/completions",
            "backend": engine.url.removeprefix("http://"), "why": "the only one that could be chosen", "shadow": None,
            "phase": "decode", "position": None, "expected_wait": None, "resumes": 0, "worker": 0,
        }  # fmt: skip
        for headers in ({}, CLIENT):
            public = await snapshot_of(proxy, headers)
            assert (public["audience"], public["admin_key"]) == ("public", "required")
            assert public["requests"] == {"total": 1, "shown": []}
            assert "usage" not in public
            assert "alice" not in json.dumps(public)


async def test_request_without_an_event_is_in_prefill_and_queued_ones_have_positions(fleet: Fleet) -> None:
    engine = await fleet.engine(hangs)
    engine.slots = 1
    proxy = await fleet.proxy(engine, admin_key=ADMIN_KEY, backend_queue_allowance=0, **KEYS)
    async with AsyncExitStack() as stack:
        for number in range(3):
            headers = CLIENT | {"X-Request-Id": f"r{number}"}
            call = await stack.enter_async_context(Call(proxy.url, "/v1/completions", {"prompt": "a"}, headers=headers))
            call.send()
            await live(proxy, lambda request, name=f"r{number}": request["id"] == name)  # type: ignore[misc]
        content = await snapshot_of(proxy)
        shown = {request["id"]: request for request in content["requests"]["shown"]}

    assert [shown[f"r{number}"]["phase"] for number in range(3)] == ["prefill", "queued", "queued"]
    assert [shown[f"r{number}"]["position"] for number in range(3)] == [None, 1, 2]
    assert [shown[f"r{number}"]["backend"] is None for number in range(3)] == [False, True, True]
    assert content["queue"]["by_key"] == [{"key": "alice", "requests": 2}]
    assert (content["fleet"]["queue"], content["fleet"]["in_flight"]) == (2, 1)


async def test_hidden_names_stay_hidden(fleet: Fleet) -> None:
    engine = await fleet.engine()
    proxy = await fleet.proxy(engine, admin_key=ADMIN_KEY, health_details="key", **KEYS)
    port = engine.url.rpartition(":")[2]

    public, client, operator = [await snapshot_of(proxy, headers) for headers in ({}, CLIENT, OPERATOR)]

    assert port not in json.dumps(public)
    assert [content["backends"][0]["name"] for content in (public, client, operator)] == [
        "backend-1",
        engine.url,
        f"127.0.0.1:{port}",
    ]
    assert public["events"][0]["text"] == "Backend backend-1 is up."


async def test_keys_are_checked(fleet: Fleet) -> None:
    engine = await fleet.engine()
    proxy = await fleet.proxy(engine, admin_key=ADMIN_KEY)
    for path in ("/dashboard/snapshot", "/dashboard/feed"):
        for headers in ({"X-Admin-Key": "wrong"}, {"Authorization": "Bearer wrong"}):
            refused = await send(proxy.url, path, headers=headers)
            assert (refused.status, refused.json["error"]["code"]) == (401, "invalid_api_key")
    for headers in (OPERATOR, {"Authorization": f"Bearer {ADMIN_KEY}"}):
        assert (await snapshot_of(proxy, headers))["admin_key"] == "accepted"
    assert (await send(proxy.url, "/admin/settings", headers=OPERATOR)).status == 200


async def test_without_an_admin_key_there_are_no_operators(fleet: Fleet) -> None:
    proxy = await fleet.proxy(await fleet.engine())

    content = await snapshot_of(proxy, {"X-Admin-Key": "anything", "Authorization": "Bearer sk-none"})

    assert (content["audience"], content["admin_key"]) == ("public", "unset")
    refused = await send(proxy.url, "/admin/requests/a/cancel", b"", method="POST", headers=OPERATOR)
    assert (refused.status, refused.json["error"]["code"]) == (404, "admin_off")


async def test_admin_key_is_not_sent_to_backends(fleet: Fleet) -> None:
    engine = await fleet.engine()
    proxy = await fleet.proxy(engine, admin_key=ADMIN_KEY)

    assert (await send(proxy.url, "/v1/completions", {"prompt": "a"}, headers=OPERATOR)).status == 200

    assert b"admin" not in engine.served[0].lower()


async def test_rates_latencies_and_errors_of_each_backend(fleet: Fleet) -> None:
    good, bad = await fleet.engine(), await fleet.engine(fails_with(501))
    proxy = await fleet.proxy(good, bad, admin_key=ADMIN_KEY, balancing_policy="round_robin")
    for _ in range(4):
        await proxy.post("/v1/completions", {"prompt": "a"})

    content = await snapshot_of(proxy)

    one, other = content["backends"]
    assert (one["errors_per_minute"], other["errors_per_minute"]) == (0, 2)
    assert one["ttft_p50"] > 0
    assert other["ttft_p50"] is None
    assert content["fleet"]["requests_per_second"] == pytest.approx(2 * one["requests_per_second"], rel=0.01)
    assert content["fleet"]["errors_per_second"] == other["requests_per_second"] > 0


async def test_feed_begins_at_once_and_goes_on(fleet: Fleet) -> None:
    proxy = await fleet.proxy(await fleet.engine(), admin_key=ADMIN_KEY)
    async with Call(proxy.url, "/dashboard/feed", headers=OPERATOR) as feed:
        feed.send()
        assert await feed.head() == 200
        assert feed.headers["content-type"].startswith("text/event-stream")
        first, content = await next_snapshot(feed)
        second, update = await next_snapshot(feed)

    assert second == first + 1
    assert (content["complete"], update["complete"]) == (True, False)
    assert content.keys() - update.keys() <= {"history", "usage"}


async def test_one_viewer_too_many_is_rejected_but_operators_have_seats(fleet: Fleet) -> None:
    proxy = await fleet.proxy(await fleet.engine(), admin_key=ADMIN_KEY)
    async with AsyncExitStack() as stack:
        for _ in range(MOST_OTHERS):
            feed = await stack.enter_async_context(Call(proxy.url, "/dashboard/feed"))
            feed.send()
            await next_snapshot_of(feed)
        refused = await send(proxy.url, "/dashboard/feed")
        assert (refused.status, refused.json["error"]["code"]) == (503, "too_many_viewers")
        assert "retry-after" in refused.headers
        operators = await stack.enter_async_context(Call(proxy.url, "/dashboard/feed", headers=OPERATOR))
        operators.send()
        assert await operators.head() == 200

    async def has_room() -> bool:
        async with Call(proxy.url, "/dashboard/feed") as feed:
            feed.send()
            return await feed.head() == 200

    await eventually(has_room)


async def next_snapshot_of(feed: Call) -> dict[str, Any]:
    assert await feed.head() == 200
    return (await next_snapshot(feed))[1]


async def test_head_of_the_feed_ends(fleet: Fleet) -> None:
    proxy = await fleet.proxy(await fleet.engine())
    async with Call(proxy.url, "/dashboard/feed", method="HEAD") as feed:
        feed.send()
        assert await feed.head() == 200


async def test_cancelled_requests_get_the_error_of_their_path(fleet: Fleet) -> None:
    engine = await fleet.engine(hangs)
    proxy = await fleet.proxy(engine, admin_key=ADMIN_KEY, assemble_replies=False)
    async with AsyncExitStack() as stack:
        calls = {}
        for name, path in (("openai", "/v1/chat/completions"), ("anthropic", "/v1/messages")):
            call = Call(proxy.url, path, chat(), headers={"X-Request-Id": name})
            calls[name] = await stack.enter_async_context(call)
            call.send()
            await live(proxy, lambda request, name=name: request["id"] == name)  # type: ignore[misc]
            done = await send(proxy.url, f"/admin/requests/{name}/cancel", b"", method="POST", headers=OPERATOR)
            assert (done.status, done.json) == (200, {"id": name, "cancelled": 1, "silent_workers": []})
        replies = {name: await call.reply() for name, call in calls.items()}

    assert {reply.status for reply in replies.values()} == {503}
    assert {reply.headers["x-should-retry"] for reply in replies.values()} == {"false"}
    assert replies["openai"].json["error"]["code"] == "request_cancelled"
    assert replies["anthropic"].json["error"]["message"] == "An operator has cancelled the request."
    await eventually(lambda: not engine.open_requests)
    texts = [event["text"] for event in (await snapshot_of(proxy))["events"]]
    assert any("an operator cancelled it" in text for text in texts)


async def test_connection_of_a_cancelled_request_can_be_used_again(fleet: Fleet) -> None:
    engine = await fleet.engine(hangs)
    proxy = await fleet.proxy(engine, admin_key=ADMIN_KEY, assemble_replies=False)
    reader, writer = await proxy.connect()
    request = b"POST /v1/completions HTTP/1.1\r\nhost: a\r\nx-request-id: one\r\ncontent-length: 2\r\n\r\n{}"
    writer.write(request)
    await live(proxy, lambda request: request["id"] == "one")
    await send(proxy.url, "/admin/requests/one/cancel", b"", method="POST", headers=OPERATOR)
    section = await reader.readuntil(b"\r\n\r\n")
    length = int(re.search(rb"content-length: (\d+)", section)[1])  # type: ignore[index]
    await reader.readexactly(length)
    engine.answer = answers_with(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    writer.write(request)

    assert b" 200 OK" in await reader.readuntil(b"\r\n\r\n")


async def test_settings_in_force_are_shown_without_secrets(fleet: Fleet) -> None:
    proxy = await fleet.proxy(await fleet.engine(), admin_key=ADMIN_KEY, queue_timeout_seconds=7, **KEYS)

    reply = await send(proxy.url, "/admin/settings", headers=OPERATOR)

    rows = {row["name"]: row for row in reply.json["settings"]}
    assert list(rows) == [name.upper() for name in Settings.model_fields]
    assert (rows["QUEUE_TIMEOUT_SECONDS"]["value"], rows["QUEUE_TIMEOUT_SECONDS"]["default"]) == (7, 30)
    assert rows["API_KEYS"]["value"] == ["alice:***"]
    assert rows["BLOCKED_PATHS"]["value"][0] == "/sleep"
    assert rows["QUEUE_TIMEOUT_SECONDS"]["description"].startswith("Longest wait in seconds")
    for secret in (ADMIN_KEY, "secret-of-a-client"):
        assert secret.encode() not in reply.body


async def test_event_tells_why_a_backend_is_down(fleet: Fleet) -> None:
    engine = await fleet.engine()
    proxy = await fleet.proxy(engine, await fleet.engine(), admin_key=ADMIN_KEY, refresh_seconds=0.2)
    await engine.stop()
    await proxy.becomes(engine, "down")

    events = [event for event in (await snapshot_of(proxy))["events"] if event["severity"] == "error"]

    assert [(event["kind"], event["backend"]) for event in events] == [("state", engine.url.removeprefix("http://"))]
    assert re.fullmatch(r"Backend [\d.:]+ is down: it [^.]+\.", events[0]["text"])


async def test_drains_retries_and_rejections_are_events(fleet: Fleet) -> None:
    good, bad = await fleet.engine(owner="vllm"), await fleet.engine(fails_with(503), owner="vllm")
    proxy = await fleet.proxy(good, bad, admin_key=ADMIN_KEY, balancing_policy="round_robin")
    for _ in range(2):
        assert (await proxy.post("/v1/completions", {"prompt": "a"})).status == 200
    await proxy.post("/v1/completions", {"prompt": "a", "model": "unheard-of"})
    name = bad.url.removeprefix("http://")
    for command in ("drain", "undrain"):
        await send(proxy.url, f"/admin/backends/{name}/{command}", b"", method="POST", headers=OPERATOR)

    texts = {event["kind"]: event["text"] for event in (await snapshot_of(proxy))["events"]}

    assert re.fullmatch(rf"Request \S+ goes to another backend, because backend {name} failed: \S+\.", texts["retry"])
    assert texts["drain"] == f"An operator puts backend {name} to work again."
    assert "unheard-of" in texts["rejection"]


async def test_fallbacks_and_overload_are_events(fleet: Fleet) -> None:
    large = await fleet.engine(fails_with(500), owner="vllm", models=[{"id": "large"}])
    small = await fleet.engine(owner="vllm", models=[{"id": "small"}])
    file = "models: {large: {fallbacks: [small]}, small: {}}"
    proxy = await fleet.proxy(large, small, admin_key=ADMIN_KEY, fleet_file=file, max_requests_in_flight=1)
    assert (await proxy.post("/v1/completions", {"prompt": "a", "model": "large"})).status == 200
    small.freed.clear()
    async with Call(proxy.url, "/v1/completions", {"prompt": "a", "model": "small"}) as call:
        call.send()
        await small.held.wait()
        await eventually(lambda: len(small.served) == 2)
        assert (await proxy.post("/v1/completions", {"prompt": "a", "model": "small"})).status == 503
        small.freed.set()
        await call.reply()

    texts = {event["kind"]: event["text"] for event in (await snapshot_of(proxy))["events"]}

    assert re.fullmatch(r"Model large is [a-z ]+, and small gets request \S+\.", texts["fallback"])
    assert texts["shed"] == "A request was rejected, because the proxy is overloaded: requests."
