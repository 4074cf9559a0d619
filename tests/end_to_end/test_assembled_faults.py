"""What a client without ``stream`` gets when the stream behind its reply fails. Scripted engines fail."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import pytest

from end_to_end.test_garbage import alive
from support.counters import counted
from support.fakes.engine import EngineConnection, FakeEngine, http_reply
from support.http_client import Call, Reply, send
from support.live_proxy import Proxy, live_proxy
from support.waiting import eventually

PATH = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "count"}], "max_tokens": 50}
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
WORDS = ["one", " two", " three", " four"]
DIRECT = b'{"choices":[],"answered":"without a stream"}'
PROPS = {
    "total_slots": 4,
    "chat_template_caps": {"supports_preserve_reasoning": False},
    "default_generation_settings": {"params": {"reasoning_format": "none"}},
}
USAGE = {"completion_tokens": 5, "prompt_tokens": 7, "total_tokens": 12}
RESULTS, REFUSALS = "inference_proxy_assembled_replies_total", "inference_proxy_stream_resume_refusals_total"

Break = Callable[[EngineConnection], None]


class Engine(FakeEngine):
    """A llama.cpp server that says WORDS, or what is left of them; another engine if ``owner`` says so.

    Args:
        breaks: how each of the next streams goes on after two words; ``None``: to its end.
        extra: further members of each event.
    """

    def __init__(self, *breaks: Break | None, extra: dict[str, Any] | None = None, owner: str = "llamacpp") -> None:
        super().__init__(self._serve)
        self.breaks = list(breaks)
        self.posts: list[bytes] = []
        self._extra = extra or {}
        self._owner = owner

    async def _serve(self, connection: EngineConnection) -> None:
        models = {"object": "list", "data": [{"id": "m", "object": "model", "owned_by": self._owner}]}
        answers = {b"/v1/models": models, b"/health": {"status": "ok"}, b"/props": PROPS}
        while True:
            request = await connection.request()
            target = request.split(b" ", 2)[1]
            if request.startswith(b"GET") or target in (b"/apply-template", b"/tokenize"):
                found = answers.get(target)
                connection.send(http_reply(json.dumps(found or {}).encode(), 200 if found else 404))
                continue
            self.posts.append(request)
            if b'"stream":true' in request:
                self._stream(connection, request)
            else:
                connection.send(http_reply(DIRECT, fields=b"content-type: application/json\r\n"))

    def _stream(self, connection: EngineConnection, request: bytes) -> None:
        said = json.loads(request.partition(b"\r\n\r\n")[2])["messages"][-1]["content"]
        words = WORDS[2:] if said == "".join(WORDS[:2]) else WORDS
        breaks = self.breaks.pop(0) if self.breaks else None
        connection.send(HEAD)
        for word in words[:2] if breaks else words:
            connection.send(self._event(choices=[choice(content=word)]))
        if breaks is not None:
            breaks(connection)
            return
        connection.send(self._event(choices=[choice("stop")]), self._event(choices=[], usage=USAGE))
        connection.send(framed(b"data: [DONE]\n\n"), b"0\r\n\r\n")

    def _event(self, **members: Any) -> bytes:
        event = {"created": 1, "id": "c", "model": "m", "system_fingerprint": "b1", "object": "chat.completion.chunk"}
        return framed(b"data: " + json.dumps({**event, **members, **self._extra}).encode() + b"\n\n")


def choice(finish_reason: str | None = None, **delta: str) -> dict[str, Any]:
    return {"finish_reason": finish_reason, "index": 0, "delta": delta}


def framed(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def dies(connection: EngineConnection) -> None:
    connection.finish()


def stalls(connection: EngineConnection) -> None:
    """Sends nothing more, and leaves the connection open."""


def ends_without_a_finish(connection: EngineConnection) -> None:
    connection.send(b"0\r\n\r\n")


def reports(code: int) -> Break:
    def breaks(connection: EngineConnection) -> None:
        error = json.dumps({"error": {"code": code, "message": "it failed", "type": "some_error"}})
        connection.send(framed(f"data: {error}\n\n".encode()), b"0\r\n\r\n")

    return breaks


@asynccontextmanager
async def fleet(*engines: Engine, **settings: Any) -> AsyncIterator[Proxy]:
    async with AsyncExitStack() as stack:
        for engine in engines:
            await stack.enter_async_context(engine)
        yield await stack.enter_async_context(live_proxy(*(engine.url for engine in engines), **settings))


async def ask(proxy: Proxy, headers: dict[str, str] | None = None, **members: Any) -> Reply:
    return await send(proxy.url, PATH, {**BODY, **members}, headers=headers)


def is_answer(reply: Reply) -> bool:
    message = {"role": "assistant", "content": "".join(WORDS)}
    return reply.status == 200 and reply.json["choices"][0]["message"] == message


async def test_the_request_reaches_the_engine_as_a_stream() -> None:
    engine = Engine()
    async with fleet(engine) as proxy:
        reply = await ask(proxy, headers={"Accept-Encoding": "gzip"})
        assert is_answer(reply)
        assert reply.headers["content-type"] == "application/json; charset=utf-8"
        assert await counted(proxy, RESULTS) == {"assembled": 1}
    [request] = engine.posts
    head, _, body = request.partition(b"\r\n\r\n")
    assert b"accept-encoding" not in head.lower()  # a compressed stream could not be read
    added = {"stream": True, "stream_options": {"include_usage": True}, "timings_per_token": True}
    assert json.loads(body) == {**BODY, **added}


async def test_other_engines_of_the_same_fleet_get_the_request_unchanged() -> None:
    engine, other = Engine(), Engine(owner="vllm")
    async with fleet(engine, other, balancing_policy="round_robin") as proxy:
        replies = [await ask(proxy, headers={"Accept-Encoding": "gzip"}) for _ in range(4)]
    assert [reply.body == DIRECT for reply in replies].count(True) == len(other.posts) == 2
    for request in other.posts:
        head, _, body = request.partition(b"\r\n\r\n")
        assert b"Accept-Encoding: gzip" in head
        assert body == json.dumps(BODY).encode()


@pytest.mark.parametrize("breaks", [dies, ends_without_a_finish, reports(500)], ids=["dies", "ends", "error"])
async def test_a_broken_stream_continues_on_another_engine(breaks: Break) -> None:
    plan: list[Break | None] = [breaks]
    one, other = Engine(), Engine()
    one.breaks = other.breaks = plan  # the first stream breaks, wherever it is
    async with fleet(one, other) as proxy:
        assert is_answer(await ask(proxy))
        assert await counted(proxy, RESULTS) == {"assembled": 1}
    continued = json.loads((one.posts + other.posts)[-1].partition(b"\r\n\r\n")[2])
    assert {len(one.posts), len(other.posts)} == {1}
    assert "stream" in continued


@pytest.mark.parametrize("breaks", [dies, ends_without_a_finish], ids=["dies", "ends"])
async def test_without_another_engine_a_broken_stream_is_a_502(breaks: Break) -> None:
    async with fleet(Engine(breaks)) as proxy:
        reply = await ask(proxy)
        assert (reply.status, reply.json["error"]["code"]) == (502, "backend_disconnected")
        assert await counted(proxy, REFUSALS) == {"no_other_backend": 1}


async def test_a_stream_that_must_not_be_continued_is_repeated_once_unchanged() -> None:
    plan: list[Break | None] = [dies]
    one, other = Engine(), Engine()
    one.breaks = other.breaks = plan
    async with fleet(one, other, stream_resume="off") as proxy:
        assert (await ask(proxy)).body == DIRECT
        assert await counted(proxy, RESULTS) == {"broken": 1}
    assert {len(one.posts), len(other.posts)} == {1}


async def test_an_error_about_the_request_within_the_stream_is_a_reply_with_its_status() -> None:
    engine = Engine(reports(400))
    async with fleet(engine) as proxy:
        reply = await ask(proxy)
    assert (reply.status, reply.complete) == (400, True)
    assert reply.json == {"error": {"code": 400, "message": "it failed", "type": "some_error"}}
    assert reply.headers["content-type"] == "application/json; charset=utf-8"
    assert len(engine.posts) == 1


async def test_an_error_of_the_only_engine_within_the_stream_is_tried_again_without_one() -> None:
    engine = Engine(reports(500))
    async with fleet(engine) as proxy:
        assert (await ask(proxy)).body == DIRECT
    assert len(engine.posts) == 2


async def test_replies_of_an_engine_with_unknown_events_are_no_longer_assembled() -> None:
    engine = Engine(extra={"novelty": 1})
    async with fleet(engine) as proxy:
        assert (await ask(proxy)).body == DIRECT
        assert (await ask(proxy)).body == DIRECT
        assert await counted(proxy, RESULTS) == {"unknown_members": 1}
    assert [b'"stream":true' in request for request in engine.posts] == [True, False, False]


async def test_keep_alives_of_the_engine_do_not_turn_the_reply_into_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inference_engine_proxy_server.wire.reply_relay._SILENT_SECONDS", 0.0)

    class Slow(Engine):
        def _stream(self, connection: EngineConnection, request: bytes) -> None:
            connection.send(HEAD, framed(b":\n\n"))
            loop = asyncio.get_running_loop()
            loop.call_later(0.1, connection.send, framed(b":\n\n"))
            loop.call_later(0.2, self._answer_late, connection)

        def _answer_late(self, connection: EngineConnection) -> None:
            for word in WORDS:
                connection.send(self._event(choices=[choice(content=word)]))
            connection.send(self._event(choices=[choice("stop")]), self._event(choices=[], usage=USAGE))
            connection.send(framed(b"data: [DONE]\n\n"), b"0\r\n\r\n")

    async with fleet(Slow()) as proxy:
        assert is_answer(await ask(proxy))


@pytest.fixture
def without_collections() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_collections")
@pytest.mark.parametrize("way", ["complete", "broken", "client leaves"])
async def test_an_assembled_reply_leaves_nothing_behind(way: str) -> None:
    engine = Engine()
    async with fleet(engine) as proxy:

        async def is_idle() -> bool:
            return not any(one["requests_in_flight"] for one in (await proxy.details()).values())

        async def serve() -> Any:
            for _ in range(5):
                engine.breaks = [] if way == "complete" else [dies if way == "broken" else stalls]
                begun = len(engine.posts)
                async with Call(proxy.url, PATH, BODY) as call:
                    call.send()
                    if way == "client leaves":
                        await eventually(partial(_has_more, engine.posts, begun))
                    else:
                        await call.reply()
            await eventually(is_idle)
            return await alive(proxy)

        await serve()
        before = await serve()
        assert not {name: count for name, count in (await serve() - before).items() if count >= 5}


def _has_more(posts: list[bytes], than: int) -> bool:
    return len(posts) > than
