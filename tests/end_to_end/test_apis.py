"""Every API of real llama.cpp servers, through the program: replies, names of models, usage, failover and errors."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import openai
import pytest

from end_to_end.apis import APIS, RANKS, VECTORS, WORDS, Api, comparable, counts, start_proxy, tokens_of
from support.http_client import Reply, send
from support.llama_server import LlamaServer
from support.program import Proxy
from support.tiny_gguf import ModelShape, write_tiny_gguf
from support.waiting import eventually

OPTIONS = {WORDS: (), VECTORS: ("--embeddings",), RANKS: ("--rerank",)}
ALIASES = {WORDS: "gpt-4o", VECTORS: "text-embedding-3-small", RANKS: "rerank-v3.5"}
SECRETS = {name: f"sk-{name}-0123456789abcdef" for name in ("alice", "bob")}
ONE_FOR_EACH_PATH = {api.path: api for api in reversed(APIS)}.values()


@dataclass
class Site:
    """Two servers for each model, and the program in front of them.

    Attributes:
        servers: by model.
        folder: for further proxies.
    """

    servers: dict[str, list[LlamaServer]]
    proxy: Proxy
    folder: Path

    async def ask(self, api: Api, *, stream: bool = False, key: str = "alice", model: str = "") -> Reply:
        """Send a request that names the alias of its model."""
        body = api.request(model or ALIASES[api.model], stream=stream)
        return await self.proxy.post(api.path, body, authorization=f"Bearer {SECRETS[key]}")

    async def ask_engine(self, api: Api, *, stream: bool = False) -> Reply:
        """Send the same to the engine itself."""
        return await send(self.servers[api.model][0].url, api.path, api.request(api.model, stream=stream))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("apis")
    model = write_tiny_gguf(folder / "model.gguf", ModelShape(infills=True, ranks=True))
    with ExitStack() as stack:
        servers = {name: [stack.enter_context(server(model, name)) for _ in range(2)] for name in OPTIONS}
        for started in chain.from_iterable(servers.values()):
            started.wait_until_ready()
        proxy = stack.enter_context(start_proxy(folder / "proxy", servers, ALIASES, API_KEYS_FILE=write_keys(folder)))
        yield Site(servers, proxy, folder)


def server(model: Path, name: str) -> LlamaServer:
    """A server that is starting."""
    return LlamaServer(model, "--alias", name, "--precise", *OPTIONS[name], wait=False)


def write_keys(folder: Path) -> str:
    file = folder / "keys.yaml"
    file.write_text("keys:\n" + "".join(f"  - {{name: {name}, secret: {key}}}\n" for name, key in SECRETS.items()))
    return str(file)


def forms(api: Api) -> tuple[bool, ...]:
    """Whether to ask for a stream: each form that the API has."""
    return (False, True) if api.streams else (False,)


def named(api: Any) -> str:
    return f"{api.path}, {api.model}" if isinstance(api, Api) else str(api)


# --- replies


@pytest.mark.parametrize("api", APIS, ids=named)
async def test_the_reply_equals_that_of_the_engine(site: Site, api: Api) -> None:
    for stream in forms(api):
        direct, proxied = await site.ask_engine(api, stream=stream), await site.ask(api, stream=stream)
        assert direct.status == 200
        assert direct.headers["content-type"].startswith("text/event-stream") is stream
        assert comparable(proxied) == comparable(direct)
        assert proxied.headers["x-backend"] in [one.url for one in site.servers[api.model]]


@pytest.mark.parametrize("api", [api for api in ONE_FOR_EACH_PATH if api.wrong is not None], ids=named)
async def test_an_error_of_the_engine_arrives_byte_for_byte(site: Site, api: Api) -> None:
    wrong = Api(api.path, api.wrong or {}, api.model)
    direct, proxied = await site.ask_engine(wrong), await site.ask(wrong)
    assert direct.status >= 400
    assert (proxied.status, proxied.body) == (direct.status, direct.body)


@pytest.mark.parametrize("api", [api for api in ONE_FOR_EACH_PATH if api.model != WORDS], ids=named)
async def test_a_request_that_names_no_model_reaches_an_engine_that_has_the_path(site: Site, api: Api) -> None:
    reply = await site.proxy.post(api.path, dict(api.body), authorization=f"Bearer {SECRETS['alice']}")
    assert reply.status == 200


async def test_requests_are_counted_as_the_engines_report_them(site: Site) -> None:
    expected: dict[str, Counter[str]] = {}
    for api in APIS:
        for stream in forms(api):
            reply = await site.ask(api, stream=stream, key="bob")
            if not api.is_light:
                read, written = tokens_of(reply)
                sums = expected.setdefault(api.model, Counter())
                sums.update(requests=1, estimated=0, read=read, written=written)
                assert read > 0
                assert (written > 0) is (api.model == WORDS)
    await counts(site.proxy, {model: tuple(sums.values()) for model, sums in expected.items()}, "bob")


async def test_the_openai_sdk_reads_embeddings_and_responses(site: Site) -> None:
    async with openai.AsyncOpenAI(base_url=f"{site.proxy.url}/v1", api_key=SECRETS["alice"], max_retries=0) as client:
        vectors = await client.embeddings.create(model=ALIASES[VECTORS], input=["kin", "sol"])  # as base64, unseen
        response = await client.responses.create(model=ALIASES[WORDS], input="kin", max_output_tokens=4)
    assert [len(item.embedding) for item in vectors.data] == [64, 64]
    assert any(vectors.data[0].embedding)
    assert response.output_text
    assert response.usage
    assert response.usage.output_tokens == 4


# --- errors of the proxy


def assert_dialect(reply: Reply, path: str, status: int, kinds: tuple[str, str]) -> None:
    """The reply is an error of the proxy in the dialect of ``path``: OpenAI's with the first kind, or Anthropic's."""
    error = reply.json["error"]
    assert reply.status == status
    assert "x-backend" not in reply.headers
    if path.startswith("/v1/messages"):
        assert (reply.json["type"], error["type"]) == ("error", kinds[1])
        assert set(error) == {"type", "message"}
    else:
        assert error["type"] == kinds[0]
        assert {"message", "type", "code", "param"} <= set(error)


@pytest.mark.parametrize("api", ONE_FOR_EACH_PATH, ids=named)
async def test_errors_of_the_proxy_have_the_dialect_of_the_path(site: Site, api: Api) -> None:
    unknown = await site.ask(api, model="nobody")
    without_key = await site.proxy.post(api.path, dict(api.body))
    assert_dialect(unknown, api.path, 404, ("invalid_request_error", "not_found_error"))
    assert_dialect(without_key, api.path, 401, ("authentication_error", "authentication_error"))


# --- a backend that dies


async def test_repeatable_requests_survive_a_kill_and_others_get_an_error(site: Site) -> None:
    """Half of all requests are sent to servers that answer nothing and then die."""
    requests = [(api, stream) for api in APIS for stream in forms(api)]
    model = site.folder / "model.gguf"
    with ExitStack() as stack:
        dying = {
            name: stack.enter_context(LlamaServer(model, "--alias", name, *options))
            for name, options in OPTIONS.items()
        }
        servers = {name: [site.servers[name][0], dying[name]] for name in OPTIONS}
        limit = {"MAX_ALLOWED_REQUEST_QUEUE": "100"}
        proxy = stack.enter_context(start_proxy(site.folder / "other", servers, ALIASES, **limit))
        for server in dying.values():
            server.freeze()

        async def all_have_requests() -> bool:
            details = await proxy.details()
            return all(details[server.url]["requests_in_flight"] for server in dying.values())

        async with asyncio.TaskGroup() as group:
            asked = [
                group.create_task(proxy.post(api.path, api.request(ALIASES[api.model], stream=stream)))
                for api, stream in requests
                for _ in range(2)
            ]
            await eventually(all_have_requests)
            for server in dying.values():
                server.kill()
        replies = [task.result() for task in asked]
    twice = [request for request in requests for _ in range(2)]
    for (api, stream), reply in zip(twice, replies, strict=True):
        if reply.status == 200:
            assert tokens_of(reply) == tokens_of(await site.ask_engine(api, stream=stream))
        else:
            assert not api.is_repeatable
            assert_dialect(reply, api.path, 502, ("server_error", "api_error"))
