"""Every path and method is forwarded unchanged, except those that an operator has to allow."""

from __future__ import annotations

import re
from contextlib import AsyncExitStack

import pytest

from end_to_end.conftest import StartProxy
from support.http_client import Call, chat, send
from support.llama_server import LlamaServer
from support.program import Proxy

ERASE = "/slots/0?action=erase"


@pytest.mark.parametrize(
    ("method", "target", "body"),
    [
        ("GET", "/props", None),
        ("GET", "/slots", None),
        ("GET", "/v1/health", None),
        ("HEAD", "/props", None),
        ("POST", "/tokenize", {"content": "kin sol", "with_pieces": True}),
        ("POST", "/apply-template", {"messages": [{"role": "user", "content": "kin"}]}),
        ("OPTIONS", "/v1/chat/completions", None),
        ("POST", "/v1/chat/completions", b"{ not json"),
        ("GET", "/v1/chat/completions", None),
        ("DELETE", "/no/such/path", None),
        ("PATCH", "/props", {}),
        ("GET", "/%70rops", None),
    ],
)
async def test_any_request_reaches_the_engine(
    shared_proxy: Proxy, shared_server: LlamaServer, method: str, target: str, body: object
) -> None:
    proxied = await send(shared_proxy.url, target, body, method=method)
    direct = await send(shared_server.url, target, body, method=method)

    assert (proxied.status, proxied.body, proxied.complete) == (direct.status, direct.body, True)
    assert proxied.headers["x-backend"] == shared_server.url
    assert proxied.headers["server"] == "llama.cpp"


async def test_query_reaches_the_engine(shared_proxy: Proxy, shared_server: LlamaServer) -> None:
    """With this query, llama.cpp answers 503 while all slots are occupied."""
    target = "/slots?fail_on_no_slot=1"
    assert (await send(shared_proxy.url, target)).status == 200
    async with AsyncExitStack() as stack:
        for _ in range(2):
            call = await stack.enter_async_context(
                Call(shared_server.url, "/v1/chat/completions", chat(4000, stream=True))
            )
            call.send()
            await call.head()
        assert (await send(shared_proxy.url, target)).status == 503
        assert (await send(shared_proxy.url, "/slots")).status == 200


async def test_control_paths_are_blocked_unless_allowed(
    shared_proxy: Proxy, shared_server: LlamaServer, start_proxy: StartProxy
) -> None:
    blocked = await send(shared_proxy.url, ERASE, {})
    assert (blocked.status, blocked.json["error"]["code"]) == (403, "path_blocked")
    assert "BLOCKED_PATHS" in blocked.json["error"]["message"]
    assert "x-backend" not in blocked.headers
    assert (await send(shared_proxy.url, "/slots/0?action=erase", method="GET")).headers["x-backend"]

    allowed = await send(start_proxy(shared_server, BLOCKED_PATHS="").url, ERASE, {})

    direct = await send(shared_server.url, ERASE, {})
    assert (allowed.status, allowed.body) == (direct.status, direct.body)
    assert allowed.headers["x-backend"] == shared_server.url


async def test_body_length_is_limited_by_the_setting(shared_server: LlamaServer, start_proxy: StartProxy) -> None:
    proxy = start_proxy(shared_server, MAX_REQUEST_BODY_BYTES="1000", BACKEND_HEADER="false")
    start, end = b'{"content": "', b'"}'

    fits = await send(proxy.url, "/tokenize", start + b"k" * (1000 - len(start + end)) + end)
    too_long = await send(proxy.url, "/tokenize", start + b"k" * (1001 - len(start + end)) + end)

    assert fits.status == 200
    assert "x-backend" not in fits.headers  # BACKEND_HEADER
    assert (too_long.status, too_long.json["error"]["code"]) == (413, "body_too_large")


async def test_valid_request_id_is_kept_and_an_invalid_one_replaced(shared_proxy: Proxy) -> None:
    kept = await send(shared_proxy.url, "/props", headers={"X-Request-Id": "job-7.b_C"})
    bad = [await send(shared_proxy.url, "/props", headers={"X-Request-Id": value}) for value in ("a b", "x" * 129)]
    none = await send(shared_proxy.url, "/props")

    assert kept.headers["x-request-id"] == "job-7.b_C"
    new = [reply.headers["x-request-id"] for reply in (*bad, none)]
    assert len(set(new)) == 3
    assert all(re.fullmatch(r"[0-9a-f]{12}-[0-9a-f]+", value) for value in new)


async def test_models_are_listed_once(start_proxy: StartProxy, two_servers: list[LlamaServer]) -> None:
    [expected] = (await send(two_servers[0].url, "/v1/models")).json["data"]

    [model] = (await send(start_proxy(*two_servers).url, "/v1/models")).json["data"]

    assert model["id"] == expected["id"]
