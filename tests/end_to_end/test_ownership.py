"""A key may use only the backend-local resources that it created."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from end_to_end.stateful_engine import StatefulEngine
from support.http_client import Reply, send
from support.live_proxy import live_proxy
from support.program import program

SECRETS = {name: f"sk-{name}-0123456789abcdef" for name in ("alice", "bob", "limited")}
KEYS = "keys:\n" + "".join(
    f"  - {{name: {name}, secret: {secret}{', models: [m]' * (name == 'limited')}}}\n"
    for name, secret in SECRETS.items()
)
RESPONSES, CHAT, STREAM = "/v1/responses", "/v1/chat/completions", "/v1/stream"


class Proxied:
    """A proxy in front of engines that keep what they created."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def ask(self, name: str, method: str, target: str, body: Any = None, **fields: str) -> Reply:
        headers = {"authorization": f"Bearer {SECRETS[name]}"} | fields
        return await send(self.url, target, body, method=method, headers=headers)

    async def create(self, name: str, path: str = RESPONSES, **more: Any) -> str:
        reply = await self.ask(name, "POST", path, {"model": "m", "store": True, **more})
        assert reply.status == 200, reply.body
        return reply.body.partition(b'"id": "')[2].partition(b'"')[0].decode()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    (file := tmp_path / "keys.yaml").write_text(KEYS)
    return file


@pytest.fixture
async def proxy(keys: Path) -> AsyncIterator[Proxied]:
    async with StatefulEngine("a") as one, StatefulEngine("b") as other:
        async with live_proxy(one.url, other.url, api_keys_file=str(keys)) as proxy:
            yield Proxied(proxy.url)


@pytest.mark.parametrize("owner", ["alice", "limited"])
@pytest.mark.parametrize("stream", [False, True])
async def test_a_response_belongs_to_the_key_that_created_it(proxy: Proxied, owner: str, stream: bool) -> None:
    for _ in range(4):
        response = await proxy.create(owner, stream=stream)
        for method, below in (("GET", ""), ("GET", "/input_items"), ("POST", "/cancel"), ("DELETE", "")):
            foreign = await proxy.ask("bob", method, f"{RESPONSES}/{response}{below}")
            assert (foreign.status, "x-backend" in foreign.headers) == (404, False)
        after = {"model": "m", "previous_response_id": response}
        assert (await proxy.ask("bob", "POST", RESPONSES, after)).status == 404
        assert (await proxy.ask(owner, "POST", RESPONSES, after)).status == 200
        for method, below in (("GET", ""), ("GET", "/input_items"), ("POST", "/cancel"), ("DELETE", "")):
            assert (await proxy.ask(owner, method, f"{RESPONSES}/{response}{below}")).status == 200


async def test_a_stored_completion_belongs_to_the_key_that_created_it(proxy: Proxied) -> None:
    for _ in range(4):
        completion = await proxy.create("alice", CHAT)
        for method in ("GET", "POST", "DELETE"):
            assert (await proxy.ask("bob", method, f"{CHAT}/{completion}")).status == 404
            assert (await proxy.ask("alice", method, f"{CHAT}/{completion}")).status == 200


async def test_stored_completions_of_all_keys_are_not_listed(proxy: Proxied) -> None:
    reply = await proxy.ask("alice", "GET", CHAT)
    assert (reply.status, "x-backend" in reply.headers) == (404, False)


async def test_a_stream_belongs_to_the_key_that_created_it(proxy: Proxied) -> None:
    begins = {"model": "m"}, {"x-conversation-id": "c1"}
    assert (await proxy.ask("alice", "POST", CHAT, begins[0], **begins[1])).status == 200
    assert (await proxy.ask("bob", "POST", CHAT, begins[0], **begins[1])).status == 404  # it would end the other one
    for method, target in (
        ("GET", f"{STREAM}?conv_id=c1"),
        ("GET", f"{STREAM}?conv_id=%631"),
        ("GET", f"{STREAM}?x=1&conv_id=c1&from=0"),
        ("DELETE", f"{STREAM}?conv_id=c1"),
        ("DELETE", f"{STREAM}/c1"),
        ("GET", f"{STREAM}?conv_id=other&conv_id=c1"),
    ):
        assert (await proxy.ask("bob", method, target)).status == 404
    lookup = {"conversation_ids": ["c2", "c1"]}
    assert (await proxy.ask("bob", "POST", "/v1/streams/lookup", lookup)).status == 404
    assert "x-backend" in (await proxy.ask("alice", "POST", "/v1/streams/lookup", lookup)).headers
    assert "x-backend" in (await proxy.ask("alice", "DELETE", f"{STREAM}?conv_id=c1")).headers
    assert (await proxy.ask("alice", "POST", CHAT, begins[0], **begins[1])).status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/%761/responses/{}",
        "//v1/responses/{}",
        "/v1//responses/{}",
        "/./v1/responses/{}",
        "/v1/responses/%2e%2e/responses/{}",
        "/v1/responses/mine/../{}",
        "/v1/responses%2F{}",
    ],
)
async def test_no_spelling_of_a_path_reaches_a_foreign_response(proxy: Proxied, path: str) -> None:
    response = await proxy.create("alice")
    reply = await proxy.ask("bob", "GET", path.format(response))
    assert (reply.status, "x-backend" in reply.headers) == (404, False)


@pytest.mark.parametrize("path", ["/%761/responses", "/v1/responses/", "//responses"])
async def test_no_spelling_of_a_path_continues_a_foreign_response(proxy: Proxied, path: str) -> None:
    after = {"model": "m", "previous_response_id": await proxy.create("alice")}
    reply = await proxy.ask("bob", "POST", path, after)
    assert (reply.status, "x-backend" in reply.headers) == (404, False)


async def test_a_body_that_cannot_be_read_continues_no_foreign_response(proxy: Proxied) -> None:
    response = await proxy.create("alice")
    body = f'{{"model": "m", "previous_response_id": "{response}", "x": NaN}}'.encode()
    reply = await proxy.ask("bob", "POST", RESPONSES, body)
    assert (reply.status, "x-backend" in reply.headers) == (400, False)


async def test_a_resource_of_unknown_origin_belongs_to_no_key(keys: Path) -> None:
    async with StatefulEngine("a") as engine:
        async with live_proxy(engine.url, api_keys_file=str(keys)) as before:
            response = await Proxied(before.url).create("alice")
        async with live_proxy(engine.url, api_keys_file=str(keys)) as after:
            assert (await Proxied(after.url).ask("bob", "GET", f"{RESPONSES}/{response}")).status == 404


async def test_a_single_key_may_use_resources_of_unknown_origin() -> None:
    key = f"alice:{SECRETS['alice']}"
    async with StatefulEngine("a") as engine:
        async with live_proxy(engine.url, api_keys=key) as before:
            response = await Proxied(before.url).create("alice")
        async with live_proxy(engine.url, api_keys=key) as after:
            assert (await Proxied(after.url).ask("alice", "GET", f"{RESPONSES}/{response}")).status == 200


async def test_all_workers_know_the_owner(tmp_path: Path, keys: Path) -> None:
    async with StatefulEngine("a") as one, StatefulEngine("b") as other:
        async with program(tmp_path, one, other, API_KEYS_FILE=str(keys), WORKERS="2") as proxy:
            proxied = Proxied(proxy.url)
            responses = [await proxied.create("alice") for _ in range(6)]
            for response in responses:
                for _ in range(4):  # each is a connection of its own, to either worker
                    assert (await proxied.ask("bob", "GET", f"{RESPONSES}/{response}")).status == 404
                    assert (await proxied.ask("alice", "GET", f"{RESPONSES}/{response}")).status == 200
