"""The usage ledger: what is counted, what clients see of it, and budgets."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from inference_engine_proxy_server.usage.query import query_of, read_rows
from support.engine import STREAM_HEAD, Answer, Engine, chunk, fails_with
from support.fakes.engine import EngineConnection, http_reply
from support.http_client import Call, Reply, chat, send
from support.live_proxy import Proxy, live_proxy
from support.program import program
from support.waiting import eventually

CHAT = "/v1/chat/completions"
PATHS = ("/v1/chat/completions", "/chat/completions", "/v1/completions", "/completions")
TOKENS = [
    b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"t%d"},"finish_reason":null}]}\n\n' % n
    for n in (1, 2, 3)
]
FINISH = b'data: {"id":"1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"id":"1","choices":[],"usage":{"prompt_tokens":40,"completion_tokens":3,"total_tokens":43}}\n\n'
DONE = b"data: [DONE]\n\n"
WHOLE = http_reply(
    b'{"choices":[],"usage":{"prompt_tokens":40,"completion_tokens":3,"prompt_tokens_details":{"cached_tokens":30}}}',
    fields=b"content-type: application/json\r\n",
)
ALICE, BOB, ADMIN = "sk-alice-0123456789abcdef", "sk-bob-0123456789abcdef", "key-of-the-operators"


async def streams(connection: EngineConnection) -> None:
    """Answers as vLLM does: a stream has its usage only on request."""
    request = json.loads(body_of(connection.requests[-1]) or b"{}")
    if not request.get("stream"):
        connection.send(WHOLE)
        return
    usage = [USAGE] if request.get("stream_options", {}).get("include_usage") else []
    connection.send(STREAM_HEAD, *map(chunk, [*TOKENS, FINISH, *usage, DONE]), b"0\r\n\r\n")


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def body_of(request: bytes) -> bytes:
    return request.partition(b"\r\n\r\n")[2]


class Counted:
    """A proxy with a ledger, in front of scripted engines."""

    def __init__(self, folder: Path, keys: str = "") -> None:
        self.file = folder / "usage.db"
        self.settings: dict[str, Any] = {"usage_file": str(self.file), "admin_key": ADMIN}
        if keys:
            (folder / "keys.yaml").write_text(f"keys:\n{keys}")
            self.settings["api_keys_file"] = str(folder / "keys.yaml")
        self.stack = AsyncExitStack()
        self.engines: list[Engine] = []
        self.proxy: Proxy

    async def start(self, *answers: Answer, owner: str = "vllm", **settings: Any) -> None:
        self.engines = [await self.stack.enter_async_context(Engine(answer, owner=owner)) for answer in answers]
        urls = [engine.url for engine in self.engines]
        self.proxy = await self.stack.enter_async_context(live_proxy(*urls, **(self.settings | settings)))

    def rows(self, by: str = "key,model") -> dict[tuple[str, ...], dict[str, float]]:
        """The rows of the file, without counts that are 0 and without seconds."""
        rows = read_rows(self.file, query_of({"by": by}, time.time()))
        return {
            row.groups: {
                name: count
                for name in row.counts.__struct_fields__
                if name != "seconds" and (count := getattr(row.counts, name))
            }
            for row in rows
        }

    async def becomes(self, rows: Mapping[tuple[str, ...], Mapping[str, float]], by: str = "key,model") -> None:
        """Wait until the file has exactly these rows."""
        try:
            await eventually(lambda: self.rows(by) == rows, 10)
        except AssertionError:
            assert self.rows(by) == rows
            raise


@pytest.fixture
async def counted(tmp_path: Path) -> Any:
    made = Counted(tmp_path)
    async with made.stack:
        yield made


EXACT = {"requests": 1, "input_tokens": 40, "output_tokens": 3}


# --- streams


@pytest.mark.parametrize("resume", ["on", "off"])
@pytest.mark.parametrize("path", PATHS)
async def test_a_stream_is_counted_exactly_and_its_client_sees_nothing_of_it(
    counted: Counted, path: str, resume: str
) -> None:
    await counted.start(streams, stream_resume=resume)
    reply = await send(counted.proxy.url, path, chat(stream=True))
    assert reply.complete
    assert reply.body == b"".join([*TOKENS, FINISH, DONE])
    sent = json.dumps(chat(stream=True)).encode()
    assert body_of(counted.engines[0].served[0]) == sent[:-1] + b',"stream_options":{"include_usage":true}}'
    await counted.becomes({("", "m"): EXACT})


@pytest.mark.parametrize("resume", ["on", "off"])
async def test_each_event_reaches_the_client_before_the_next_one_exists(counted: Counted, resume: str) -> None:
    may_go_on = asyncio.Semaphore(0)

    async def step_by_step(connection: EngineConnection) -> None:
        connection.send(STREAM_HEAD)
        for event in [*TOKENS, FINISH, USAGE, DONE]:
            connection.send(chunk(event))
            if event is not USAGE:
                await may_go_on.acquire()
        connection.send(b"0\r\n\r\n")

    await counted.start(step_by_step, stream_resume=resume)
    async with counted.proxy.call() as call:
        call.send()
        await call.head()
        for event in [*TOKENS, FINISH, DONE]:
            assert await call.event() == event
            may_go_on.release()
        assert await call.event() == b""
        assert call.complete


@pytest.mark.parametrize("resume", ["on", "off"])
async def test_a_stream_that_begins_with_heartbeats_is_counted_exactly(counted: Counted, resume: str) -> None:
    may_begin = asyncio.Event()

    async def late(connection: EngineConnection) -> None:
        await may_begin.wait()
        await streams(connection)

    await counted.start(late, stream_resume=resume, stream_heartbeat_seconds=0.1)
    async with counted.proxy.call() as call:
        call.send()
        await call.head()
        comment = await call.event()
        assert comment.startswith(b":")
        may_begin.set()
        rest = (await call.reply()).body
    assert rest.replace(comment, b"") == b"".join([*TOKENS, FINISH, DONE])
    await counted.becomes({("", "m"): EXACT})


async def test_a_client_that_asks_for_the_usage_gets_it_and_its_body_is_not_changed(counted: Counted) -> None:
    await counted.start(streams)
    body = json.dumps(chat(stream=True, stream_options={"include_usage": True}), separators=(",", ": ")).encode()
    reply = await send(counted.proxy.url, CHAT, body, headers={"content-type": "application/json"})
    assert reply.body == b"".join([*TOKENS, FINISH, USAGE, DONE])
    assert body_of(counted.engines[0].served[0]) == body
    await counted.becomes({("", "m"): EXACT})


@pytest.mark.parametrize(
    ("owner", "path", "stream"),
    [
        ("llamacpp", CHAT, True),
        ("somebody", CHAT, True),
        ("vllm", CHAT, False),
        ("vllm", "/v1/responses", True),
        ("vllm", "/v1/messages", True),
    ],
)
async def test_only_engines_and_paths_that_need_it_are_asked_for_usage(
    counted: Counted, owner: str, path: str, stream: bool
) -> None:
    await counted.start(streams, owner=owner)
    await send(counted.proxy.url, path, chat(stream=stream))
    assert body_of(counted.engines[0].served[0]) == json.dumps(chat(stream=stream)).encode()


@pytest.mark.parametrize(("owner", "stated"), [("somebody", True), ("llamacpp", True), ("vllm", False)])
async def test_the_fleet_file_states_whether_a_backend_is_asked(
    tmp_path: Path, counted: Counted, owner: str, stated: bool
) -> None:
    async with Engine(streams, owner=owner) as engine:
        entry = {"url": engine.url, "stream_usage": stated}
        (tmp_path / "fleet.yaml").write_text(json.dumps({"backends": [entry]}))
        async with program(tmp_path, BACKENDS="", CONFIG_FILE="fleet.yaml", USAGE_FILE="usage.db") as proxy:
            reply = await send(proxy.url, CHAT, chat(stream=True))
    assert reply.body == b"".join([*TOKENS, FINISH, DONE])
    assert (b"include_usage" in body_of(engine.served[0])) is stated
    row = counted.rows()["", "m"]
    assert (row == EXACT) is stated
    assert ("estimated_requests" in row) is not stated


async def test_a_client_of_http_1_0_is_counted_by_an_estimate(counted: Counted) -> None:
    await counted.start(streams)
    body = json.dumps(chat(stream=True)).encode()
    reader, writer = await counted.proxy.connect()
    writer.write(b"POST %b HTTP/1.0\r\ncontent-length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body))
    assert (await reader.read()).endswith(b"".join([*TOKENS, FINISH, DONE]))
    assert body_of(counted.engines[0].served[0]) == body
    await eventually(lambda: counted.rows())
    assert counted.rows()["", "m"]["estimated_requests"] == 1


async def test_without_a_ledger_nothing_is_changed(counted: Counted) -> None:
    await counted.start(streams, usage_file=None)
    await send(counted.proxy.url, CHAT, chat(stream=True))
    assert body_of(counted.engines[0].served[0]) == json.dumps(chat(stream=True)).encode()
    assert not counted.file.exists()
    for path in ("/v1/usage", "/admin/usage"):
        reply = await send(counted.proxy.url, path, headers=bearer(ADMIN))
        assert (reply.status, reply.json["error"]["code"]) == (404, "usage_off")
        assert "USAGE_FILE is not set" in reply.json["error"]["message"]


# --- requests that do not go smoothly


async def test_a_retried_request_counts_once(counted: Counted) -> None:
    tried: list[EngineConnection] = []

    async def first_fails(connection: EngineConnection) -> None:
        tried.append(connection)
        await (fails_with(503) if len(tried) == 1 else streams)(connection)

    await counted.start(first_fails, first_fails)
    reply = await send(counted.proxy.url, CHAT, chat(stream=True))
    assert (len(tried), reply.body) == (2, b"".join([*TOKENS, FINISH, DONE]))
    await counted.becomes({("", "m"): EXACT})


async def test_a_resumed_stream_counts_once_with_all_its_tokens(counted: Counted) -> None:
    tried: list[bytes] = []

    async def first_breaks(connection: EngineConnection) -> None:
        tried.append(connection.requests[-1])
        if len(tried) == 1:
            connection.send(STREAM_HEAD, *map(chunk, TOKENS))
            connection.finish()
            return
        # The second prompt has the three tokens of the first answer.
        await streams(connection)

    await counted.start(first_breaks, first_breaks)
    reply = await send(counted.proxy.url, CHAT, chat(10, stream=True))
    assert len(tried) == 2
    assert all(body.endswith(b'"stream_options":{"include_usage":true}}') for body in tried)
    assert reply.complete
    assert b"usage" not in reply.body
    assert [reply.body.count(b'"t%d"' % number) for number in (1, 2, 3)] == [2, 2, 2]
    await counted.becomes({("", "m"): {"requests": 1, "input_tokens": 37, "output_tokens": 6}})


async def test_an_aborted_stream_is_an_estimate(counted: Counted) -> None:
    async def endless(connection: EngineConnection) -> None:
        connection.send(STREAM_HEAD, *map(chunk, TOKENS))
        await connection.ended

    await counted.start(endless)
    async with counted.proxy.call() as call:
        call.send()
        await call.head()
        for event in TOKENS:
            assert await call.event() == event
        await call.reset()
    await eventually(counted.rows)
    row = counted.rows()["", "m"]
    assert (row["requests"], row["estimated_requests"], row["output_tokens"]) == (1, 1, 3)
    assert row["estimated_tokens"] == row["input_tokens"] + row["output_tokens"]
    assert "failed_requests" not in row


async def test_a_stream_that_its_engine_breaks_has_failed_and_its_tokens_are_an_estimate(counted: Counted) -> None:
    async def breaks(connection: EngineConnection) -> None:
        connection.send(STREAM_HEAD, *map(chunk, TOKENS))
        connection.finish()

    await counted.start(breaks, stream_resume="off")
    reply = await send(counted.proxy.url, CHAT, chat(stream=True))
    assert b'"error"' in reply.body
    await eventually(counted.rows)
    row = counted.rows()["", "m"]
    assert (row["failed_requests"], row["estimated_requests"], row["output_tokens"]) == (1, 1, 3)


async def test_errors_are_counted_without_tokens(counted: Counted) -> None:
    await counted.start(fails_with(400))
    for stream in (True, False):
        assert (await send(counted.proxy.url, CHAT, chat(stream=stream))).status == 400
    await counted.becomes({("", "m"): {"requests": 2, "failed_requests": 2}})


async def test_requests_that_take_no_slot_or_reach_no_engine_are_not_counted(counted: Counted) -> None:
    await counted.start(streams)
    url = counted.proxy.url
    assert (await send(url, "/tokenize", {"content": "a"})).status == 200
    assert (await send(url, "/v1/chat/completions/abc", method="DELETE")).status == 200
    assert (await send(url, CHAT, chat(model="invented"))).status == 404
    assert (await send(url, CHAT, chat(model="m"))).status == 200
    await counted.becomes({("", "m"): EXACT | {"cached_tokens": 30}})


async def test_a_name_that_no_engine_lists_counts_for_the_model_that_answers(counted: Counted) -> None:
    await counted.start(streams, owner="llamacpp")  # which accepts any name
    for number in range(5):
        assert (await send(counted.proxy.url, CHAT, chat(model=f"invented-{number}"))).status == 200
    await counted.becomes({("", "m"): {"requests": 5, "input_tokens": 200, "output_tokens": 15, "cached_tokens": 150}})


# --- who sees what


KEYS = f"""\
  - {{name: alice, secret: {ALICE}}}
  - {{name: bob, secret: {BOB}, tokens_per_day: 100, tokens_per_month: 1000}}
"""


@pytest.fixture
async def keyed(tmp_path: Path) -> Any:
    made = Counted(tmp_path, KEYS)
    async with made.stack:
        yield made


async def ask(counted: Counted, secret: str, *, stream: bool = False) -> Reply:
    return await send(counted.proxy.url, CHAT, chat(stream=stream), headers=bearer(secret))


async def usage(counted: Counted, path: str, secret: str) -> Any:
    reply = await send(counted.proxy.url, path, headers=bearer(secret))
    assert reply.status == 200, reply.body
    return reply.json


async def test_a_key_sees_its_own_usage_and_budgets(keyed: Counted) -> None:
    await keyed.start(streams)
    for secret in (ALICE, ALICE, BOB):
        await ask(keyed, secret)
    twice = {name: 2 * count for name, count in (EXACT | {"cached_tokens": 30}).items()}
    await keyed.becomes({("alice",): twice, ("bob",): EXACT | {"cached_tokens": 30}}, by="key")
    alices = await usage(keyed, "/v1/usage", ALICE)
    assert (alices["key"], alices["budgets"], alices["by"]) == ("alice", [], ["day", "model"])
    [row] = alices["rows"]
    assert (row["model"], row["requests"], row["input_tokens"]) == ("m", 2, 80)
    assert alices["total"]["seconds"] > 0
    bobs = await usage(keyed, "/v1/usage/?by=", BOB)
    assert [(one["period"], one["tokens"], one["used"], one["left"]) for one in bobs["budgets"]] == [
        ("month", 1000, 43, 957), ("day", 100, 43, 57),
    ]  # fmt: skip
    assert bobs["rows"] == [bobs["total"]]
    # A key cannot ask for another one.
    assert (await usage(keyed, "/v1/usage?key=alice", BOB))["total"]["requests"] == 1


@pytest.mark.parametrize("path", ["/v1/usage", "/v1/usage/", "/v1/usage?by=key"])
async def test_own_usage_needs_a_key(keyed: Counted, path: str) -> None:
    await keyed.start(streams)
    for headers in ({}, bearer("sk-wrong-0123456789abcdef"), bearer(ADMIN)):
        assert (await send(keyed.proxy.url, path, headers=headers)).status == 401


async def test_operators_see_the_usage_of_all_keys_as_json_and_csv(keyed: Counted) -> None:
    await keyed.start(streams)
    for secret in (ALICE, BOB):
        await ask(keyed, secret, stream=True)
    await keyed.becomes({("alice",): EXACT, ("bob",): EXACT}, by="key")
    report = await usage(keyed, "/admin/usage", ADMIN)
    assert [(row["key"], row["model"], row["output_tokens"]) for row in report["rows"]] == [
        ("alice", "m", 3), ("bob", "m", 3),
    ]  # fmt: skip
    assert report["total"]["requests"] == 2
    assert (await usage(keyed, "/admin/usage?key=bob&by=hour", ADMIN))["total"]["requests"] == 1
    assert (await usage(keyed, "/admin/usage?to=2020-01-31&from=2020-01-01", ADMIN))["rows"] == []
    page = await send(keyed.proxy.url, "/admin/usage?format=csv&by=key", headers=bearer(ADMIN))
    assert page.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(page.body.decode())))
    assert [(row["key"], row["input_tokens"]) for row in rows] == [("alice", "40"), ("bob", "40")]
    for headers in ({}, bearer(ALICE)):
        assert (await send(keyed.proxy.url, "/admin/usage", headers=headers)).status == 401


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("by=dya", "by: 'dya' is none of month, day, hour, key, model."),
        ("from=yesterday", "from: must be a date like 2027-01-31, or a time like 2027-01-31T12:00:00Z (UTC)."),
        ("from=2026-02-01&to=2026-01-01", "from: must be before 'to'."),
    ],
)
async def test_a_wrong_query_is_explained(keyed: Counted, query: str, problem: str) -> None:
    await keyed.start(streams)
    for path, secret in (("/v1/usage", ALICE), ("/admin/usage", ADMIN)):
        reply = await send(keyed.proxy.url, f"{path}?{query}", headers=bearer(secret))
        assert (reply.status, reply.json["error"]["message"]) == (400, problem)


async def test_a_ledger_that_cannot_be_read_is_answered_with_503(keyed: Counted) -> None:
    await keyed.start(streams)
    for file in keyed.file.parent.glob("usage.db*"):
        file.unlink()
    keyed.file.write_text("no ledger " * 1000)
    reply = await send(keyed.proxy.url, "/admin/usage", headers=bearer(ADMIN))
    assert (reply.status, reply.json["error"]["code"]) == (503, "usage_unreadable")
    assert (await ask(keyed, ALICE)).status == 200


# --- budgets


@pytest.mark.parametrize("stream", [True, False])
async def test_a_budget_holds_across_a_restart(keyed: Counted, stream: bool) -> None:
    await keyed.start(streams)
    statuses = [(await ask(keyed, BOB, stream=stream)).status for _ in range(4)]
    assert statuses == [200, 200, 200, 429]  # 43 tokens each
    await keyed.proxy.stop()
    async with live_proxy(keyed.engines[0].url, **keyed.settings) as again:
        reply = await send(again.url, CHAT, chat(), headers=bearer(BOB))
        keys = await send(again.url, "/admin/keys", headers=bearer(ADMIN))
    error = reply.json["error"]
    assert (reply.status, error["code"], error["type"]) == (429, "insufficient_quota", "rate_limit_error")
    assert "budget of 100 tokens a day is used up. It is renewed at" in error["message"]
    assert error["message"].endswith("00:00 UTC.")
    assert 0 < int(reply.headers["retry-after"]) <= 86_400
    assert reply.headers["x-should-retry"] == "false"
    [bob] = [one for one in keys.json["keys"] if one["name"] == "bob"]
    assert [(one["period"], one["used"], one["left"]) for one in bob["budgets"]] == [
        ("month", 129, 871),
        ("day", 129, 0),
    ]


async def test_without_a_file_a_budget_counts_since_the_start(keyed: Counted) -> None:
    await keyed.start(streams, usage_file=None)
    assert [(await ask(keyed, BOB)).status for _ in range(4)] == [200, 200, 200, 429]
    report = await usage(keyed, "/v1/usage", BOB)
    assert (report["rows"], report["budgets"][1]["left"]) == ([], 0)
    async with live_proxy(keyed.engines[0].url, **(keyed.settings | {"usage_file": None})) as again:
        assert (await send(again.url, CHAT, chat(), headers=bearer(BOB))).status == 200


async def test_a_client_that_leaves_early_does_not_evade_its_budget(keyed: Counted) -> None:
    async def endless(connection: EngineConnection) -> None:
        connection.send(STREAM_HEAD, *map(chunk, TOKENS * 40))
        await connection.ended

    await keyed.start(endless)
    async with Call(keyed.proxy.url, CHAT, chat(stream=True), headers=bearer(BOB)) as call:
        call.send()
        await call.head()
        for _ in range(120):
            await call.event()
        await call.reset()

    async def is_refused() -> bool:
        async with Call(keyed.proxy.url, CHAT, chat(stream=True), headers=bearer(BOB)) as call:
            call.send()
            return await call.head() == 429

    await eventually(is_refused)
