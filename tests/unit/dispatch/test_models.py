"""A request reaches an engine that serves its model, or is refused; over real sockets, on scripted engines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Self

import pytest

from inference_engine_proxy_server.backends.base import BackendState, ModelNames
from support.fakes.engine import FakeEngine, answering, http_reply
from support.pools import ForwardingFront

JSON = "application/json"
FORM = "multipart/form-data; boundary=x"
FIELD = b"--x\r\nContent-Disposition: form-data; name=model\r\n\r\nbeta\r\n--x--\r\n"


def status_of(reply: bytes) -> int:
    return int(reply.split(b" ", 2)[1])


def code_of(reply: bytes) -> str:
    code: str = json.loads(reply.partition(b"\r\n\r\n")[2])["error"]["code"]
    return code


def request(body: bytes, *, path: str = "/v1/chat/completions", fields: str = "", content_type: str = JSON) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: {content_type}\r\n{fields}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def state_of(model: str) -> BackendState:
    return BackendState(ready=True, requests_processing=0.0, models=({"id": model},), model_names=ModelNames.ANY)


class Models(AsyncExitStack):
    """Engines with one model each, and a proxy in front of them."""

    def __init__(self, *models: str, policy: str = "least_requests") -> None:
        super().__init__()
        self._models = models
        self._policy = policy
        self.engines: list[FakeEngine] = []

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        for model in self._models:
            self.engines.append(await self.enter_async_context(FakeEngine(answering(http_reply(model.encode())))))
        self.proxy = await self.enter_async_context(ForwardingFront(*self.engines, policy=self._policy))
        for backend, model in zip(self.proxy.pool.backends, self._models, strict=True):
            self.proxy.pool.publish(backend, state_of(model), own_at_poll=0, asked_at=self.proxy.pool.clock())
        return self

    @property
    def requests(self) -> Sequence[int]:
        """How many requests each engine got."""
        return [len(engine.requests) for engine in self.engines]


@pytest.mark.parametrize("policy", ["least_requests", "expected_time"])
@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        pytest.param(JSON, b'\xef\xbb\xbf{"model": "beta"}', id="byte-order mark"),
        pytest.param(JSON, b'{"prompt": "\\ud83d", "model": "beta"}', id="lone surrogate"),
        pytest.param(FORM, FIELD, id="form"),
        pytest.param(FORM, b"preamble\r\n" + FIELD, id="form with a preamble"),
    ],
)
async def test_model_in_an_unusual_notation_reaches_its_engine(policy: str, content_type: str, body: bytes) -> None:
    async with Models("alpha", "beta", "gamma", policy=policy) as fleet:
        for _ in range(6):
            await fleet.proxy.send(request(body, content_type=content_type))
        assert fleet.requests == [0, 6, 0]


@pytest.mark.parametrize("policy", ["least_requests", "expected_time"])
@pytest.mark.parametrize(
    ("fields", "body", "status"),
    [("", b'{"model": 7}', 400), ("", b"{ not JSON", 400), ("Content-Encoding: gzip\r\n", b"\x1f\x8b", 415)],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/responses", "/tokenize"])
async def test_unreadable_model_is_refused_where_backends_differ(
    path: str, policy: str, fields: str, body: bytes, status: int
) -> None:
    async with Models("alpha", "beta", policy=policy) as fleet:
        reply = await fleet.proxy.send(request(body, path=path, fields=fields))
        assert (status_of(reply), code_of(reply)) == (status, "unreadable_model")
        assert fleet.requests == [0, 0]


async def test_unreadable_model_reaches_an_engine_where_all_backends_are_alike() -> None:
    async with Models("alpha", "alpha") as fleet:
        assert status_of(await fleet.proxy.send(request(b"{ not JSON"))) == 200


async def missing(fleet: Models, status: int, *engines: int) -> None:
    """Let ``engines`` reply with ``status``."""
    for at in engines:
        fleet.engines[at].script = answering(http_reply(b"missing", status))


@pytest.mark.parametrize("policy", ["least_requests", "expected_time"])
@pytest.mark.parametrize("status", [404, 405, 501])
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/embeddings"), ("POST", "/completion"), ("POST", "/tokenize"), ("GET", "/props")]
)
async def test_path_that_one_kind_of_engine_lacks_is_served_by_another(
    method: str, path: str, status: int, policy: str
) -> None:
    async with Models("chat", "chat", "embedding", policy=policy) as fleet:
        await missing(fleet, status, 0, 1)
        asked = request(b'{"input": "x"}', path=path).replace(b"POST", method.encode())
        replies = [await fleet.proxy.send(asked) for _ in range(8)]
        assert {status_of(reply) for reply in replies} == {200}
        assert all(reply.endswith(b"embedding") for reply in replies)
        assert sum(fleet.requests[:2]) <= 1  # learned
        assert fleet.requests[2] == 8


async def test_different_engines_with_the_same_models_are_of_different_kinds() -> None:
    async with Models("m", "m", "m") as fleet:
        for backend, engine in zip(fleet.proxy.pool.backends, ("llm", "llm", "speech"), strict=True):
            backend.engine = engine
        await missing(fleet, 404, 0, 1)
        asked = request(b"{}", path="/v1/audio/speech")
        assert {status_of(await fleet.proxy.send(asked)) for _ in range(8)} == {200}
        assert fleet.requests[2] == 8


async def test_missing_path_is_final_when_every_kind_lacks_it() -> None:
    async with Models("a", "b", "b") as fleet:
        await missing(fleet, 404, 0, 1, 2)
        for _ in range(2):
            assert status_of(await fleet.proxy.send(request(b"{}", path="/nowhere"))) == 404
        assert fleet.requests[0] == 2
        assert sum(fleet.requests[1:]) == 2


async def test_missing_path_is_final_when_the_engine_lists_the_model() -> None:
    async with Models("a", "b") as fleet:
        await missing(fleet, 501, 0)
        assert status_of(await fleet.proxy.send(request(b'{"model": "a"}', path="/v1/embeddings"))) == 501
        assert fleet.requests == [1, 0]


async def test_path_of_an_engine_that_is_down_is_503() -> None:
    async with Models("chat", "embedding") as fleet:
        await missing(fleet, 501, 0)
        while fleet.requests[0] == 0:
            await fleet.proxy.send(request(b"{}", path="/v1/embeddings"))
        fleet.proxy.pool.report_refused_connection(fleet.proxy.pool.backends[1])
        assert status_of(await fleet.proxy.send(request(b"{}", path="/v1/embeddings"))) == 503


async def test_engine_that_comes_back_is_asked_again() -> None:
    async with Models("chat", "embedding") as fleet:
        pool = fleet.proxy.pool
        await missing(fleet, 501, 0)
        while fleet.requests[0] == 0:
            await fleet.proxy.send(request(b"{}", path="/v1/embeddings"))
        pool.report_refused_connection(pool.backends[0])
        await missing(fleet, 200, 0)
        pool.publish(pool.backends[0], state_of("chat"), own_at_poll=0, asked_at=pool.clock() + 1)
        for _ in range(20):
            await fleet.proxy.send(request(b"{}", path="/v1/embeddings"))
        assert fleet.requests[0] > 1


async def test_web_ui_sees_one_model() -> None:
    """It loads its page and assets, asks for /props, and chats without a model."""
    async with Models("alpha", "beta", "embedding") as fleet:
        await missing(fleet, 404, 2)
        asked = [request(b"", path=path).replace(b"POST", b"GET") for path in ("/index.html", "/bundle.js", "/props")]
        for one in [*asked, request(b'{"messages": []}')] * 4:
            assert (await fleet.proxy.send(one)).endswith(b"alpha")


async def test_web_ui_works_behind_an_engine_that_lacks_it() -> None:
    async with Models("vllm", "llama") as fleet:
        await missing(fleet, 404, 0)
        for path in ("/index.html", "/props") * 4:
            assert (await fleet.proxy.send(request(b"", path=path).replace(b"POST", b"GET"))).endswith(b"llama")


async def test_path_that_several_models_have_is_always_served_by_the_same() -> None:
    async with Models("chat", "embedding-1", "embedding-2") as fleet:
        await missing(fleet, 501, 0)
        replies = {await fleet.proxy.send(request(b"{}", path="/v1/embeddings")) for _ in range(12)}
        assert len({reply.rpartition(b"\r\n")[2] for reply in replies}) == 1
