"""Aliases, the default model and parameters of models, through the whole proxy, in front of scripted engines."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from support.engine import Engine, answers_with
from support.fakes.engine import http_reply
from support.fleet import Fleet
from support.live_proxy import Proxy

CHAT = "/v1/chat/completions"
LARGE = {"id": "large", "object": "model", "created": 5, "aliases": [], "meta": {"n_ctx": 4096, "size": 7}}
SMALL = {"id": "small", "object": "model", "created": 6, "max_model_len": 512}
NAMES = """\
default_model: small-fast
models:
  large:
    aliases: [gpt-4o, "claude-*"]
    parameters: {set: {max_tokens: 64}}
  small:
    aliases: [gpt-3.5]
    hidden_aliases: true
  small-fast:
    serves_as: small
    parameters: {default: {top_k: 1}}
"""
ALICE, BOB, CAROL, DAVE = (f"sk-{name}-0123456789abcdef" for name in ("alice", "bob", "carol", "dave"))


@pytest.fixture
async def fleet() -> AsyncIterator[Fleet]:
    async with AsyncExitStack() as stack:
        yield Fleet(stack)


class Site:
    """Two engines with different models, and a proxy."""

    def __init__(self, large: Engine, small: Engine, proxy: Proxy) -> None:
        self.large, self.small, self.proxy = large, small, proxy

    async def post(self, body: object, path: str = CHAT, **headers: str) -> tuple[int, Any]:
        """Status and body of a reply."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        reply = await self.proxy.http.post(path, content=content, headers={"content-type": "application/json"} | names)
        return reply.status_code, reply.json()

    async def ids(self, **headers: str) -> list[str]:
        """The listed models."""
        reply = await self.proxy.http.get("/v1/models", headers=headers)
        return [entry["id"] for entry in reply.json()["data"]]


async def start(fleet: Fleet, text: str = NAMES, **settings: Any) -> Site:
    answer = answers_with(http_reply(b'{"model":"as the engine says"}', fields=b"content-type: application/json\r\n"))
    large = await fleet.engine(answer, models=[LARGE], owner="vllm")
    small = await fleet.engine(answer, models=[SMALL], owner="vllm")
    return Site(large, small, await fleet.proxy(large, small, fleet_file=text, **settings))


def bodies(engine: Engine) -> list[bytes]:
    return [request.partition(b"\r\n\r\n")[2] for request in engine.served]


@pytest.mark.parametrize("policy", ["least_requests", "expected_time"])
@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("large", b'{"model": "large", "x": 1.50,"max_tokens":64}'),
        ("gpt-4o", b'{"model": "large", "x": 1.50,"max_tokens":64}'),
        ("claude-sonnet-5", b'{"model": "large", "x": 1.50,"max_tokens":64}'),
        ("small", b'{"model": "small", "x": 1.50}'),
        ("gpt-3.5", b'{"model": "small", "x": 1.50}'),
        ("small-fast", b'{"model": "small", "x": 1.50,"top_k":1}'),
    ],
)
async def test_the_engine_gets_its_own_name_and_the_reply_comes_back_unchanged(
    fleet: Fleet, name: str, sent: bytes, policy: str
) -> None:
    site = await start(fleet, balancing_policy=policy)
    assert await site.post(b'{"model": "%b", "x": 1.50}' % name.encode()) == (200, {"model": "as the engine says"})
    engine, other = (site.large, site.small) if b'"large"' in sent else (site.small, site.large)
    assert (bodies(engine), bodies(other)) == ([sent], [])
    assert b"content-length: %d\r\n" % len(sent) in engine.served[0]


async def test_requests_without_a_model_get_the_default(fleet: Fleet) -> None:
    site = await start(fleet)
    await site.post(b'{"messages": []}')
    await site.post(b'{"model": null}', "/v1/messages")
    await site.post(b'{"input": "x"}', "/v1/embeddings")
    assert (await site.proxy.http.get("/props")).status_code == 404  # from the engine
    assert bodies(site.small) == [
        b'{"messages": [],"top_k":1,"model":"small"}',
        b'{"model": "small","top_k":1}',
        b'{"input": "x"}',
    ]
    assert site.large.served == []


async def test_a_form_and_a_query_name_the_model_of_the_engine(fleet: Fleet) -> None:
    site = await start(fleet)
    reply = await site.proxy.http.post(
        "/v1/audio/transcriptions", data={"model": "gpt-4o", "language": "en"}, files={"file": ("a.wav", b"RIFF")}
    )
    assert reply.status_code == 200
    assert b'name="model"\r\n\r\nlarge\r\n' in site.large.served[0]
    for _ in range(2):  # the header section of the second request is recalled, not parsed
        await site.proxy.http.get("/slots?model=gpt-3.5&x=1")
    assert [target for _, target, _ in site.small.asked if target.startswith("/slots")] == [
        "/slots?model=small&x=1"
    ] * 2


async def test_without_rules_the_body_is_the_same(fleet: Fleet) -> None:
    site = await start(fleet)
    body = b'\xef\xbb\xbf { "model":"sm\\u0061ll", "seed":123456789012345678901234567890, "x":[1.0, 1e5], "x":"\\/"}\n'
    await site.post(body)
    assert bodies(site.small) == [body]


async def test_the_list_has_aliases_with_the_facts_of_their_models(fleet: Fleet) -> None:
    site = await start(fleet)
    listing = (await site.proxy.http.get("/v1/models")).json()["data"]
    facts = {key: value for key, value in LARGE.items() if key not in ("id", "aliases")}
    assert [entry["id"] for entry in listing] == ["small-fast", "small", "large", "gpt-4o"]
    assert listing[-1] == {**facts, "id": "gpt-4o", "owned_by": "vllm"}
    assert listing[0] == {**SMALL, "id": "small-fast", "owned_by": "vllm"}


@pytest.mark.parametrize(
    ("name", "model"), [("gpt-4o", LARGE), ("claude-opus-5", LARGE), ("gpt-3.5", SMALL), ("small-fast", SMALL)]
)
async def test_each_name_has_an_entry_also_hidden_ones(fleet: Fleet, name: str, model: dict[str, Any]) -> None:
    site = await start(fleet)
    entry = (await site.proxy.http.get(f"/v1/models/{name}")).json()
    assert entry == {key: value for key, value in model.items() if key != "aliases"} | {"id": name, "owned_by": "vllm"}


async def test_a_model_behind_an_alias_of_a_model_that_is_down_is_not_listed(fleet: Fleet) -> None:
    site = await start(fleet, "models: {missing: {aliases: [small], hidden_aliases: true}}")
    assert await site.ids() == ["large"]
    assert (await site.proxy.http.get("/v1/models/small")).status_code == 404


async def test_aliases_of_a_model_that_is_down_are_not_listed(fleet: Fleet) -> None:
    small = await fleet.engine(models=[SMALL], owner="vllm")
    proxy = await fleet.proxy(small, fleet_file=NAMES)
    listing = (await proxy.http.get("/v1/models")).json()["data"]
    assert [entry["id"] for entry in listing] == ["small-fast", "small"]


@pytest.mark.parametrize(
    ("path", "error"),
    [
        (CHAT, {"type": "invalid_request_error", "code": "model_not_found", "param": "model"}),
        ("/v1/messages", {"type": "not_found_error"}),
        ("/api/chat", {"code": "model_not_found"}),
    ],
)
async def test_an_unknown_model_is_a_404_with_similar_names(fleet: Fleet, path: str, error: dict[str, str]) -> None:
    site = await start(fleet)
    status, body = await site.post({"model": "gpt-4", "max_tokens": 1}, path)
    assert status == 404
    assert body["error"].items() >= error.items()
    assert body["error"]["message"].startswith("The model 'gpt-4' is not served here. Did you mean 'gpt-4o'?")


@pytest.mark.parametrize("name", ["LARGE", "larg", "large2"])
async def test_similar_names_are_found_regardless_of_case(fleet: Fleet, name: str) -> None:
    site = await start(fleet)
    _, body = await site.post({"model": name})
    assert body["error"]["message"].endswith("Did you mean 'large'?")
    reply = await site.proxy.http.get(f"/v1/models/{name}")
    assert reply.status_code == 404
    assert reply.json()["error"]["message"].endswith("Did you mean 'large'?")


@pytest.mark.parametrize("name", ["gpt-3.55", "claude", "x" * 100_000, "\u6a21"])
async def test_names_that_are_not_listed_are_not_suggested(fleet: Fleet, name: str) -> None:
    site = await start(fleet)
    status, body = await site.post({"model": name})
    assert (status, "mean" in body["error"]["message"]) == (404, False)


async def test_the_404_of_an_alias_says_what_it_means(fleet: Fleet) -> None:
    site = await start(fleet, "models: {missing: {aliases: [gpt-4o]}}")
    _, body = await site.post({"model": "gpt-4o"})
    assert body["error"]["message"] == "The model 'gpt-4o', which means 'missing', is not served here."


async def test_a_body_that_hides_its_parameters_is_rejected(fleet: Fleet) -> None:
    site = await start(fleet)
    status, body = await site.post(b"[]", f"{CHAT}?model=large")
    assert (status, body["error"]["code"]) == (400, "unreadable_body")
    assert site.large.served == []


async def test_the_access_log_has_both_names(fleet: Fleet) -> None:
    fleet.keeps_access_log = True
    site = await start(fleet)
    await site.post({"model": "claude-x y"})
    await site.post({"model": "large"})
    await site.proxy.stop()
    aliased, plain = fleet.access_log.getvalue().splitlines()
    assert " model=large " in aliased
    assert aliased.endswith(' alias="claude-x y"')
    assert " model=large " in plain
    assert "alias" not in plain


async def test_a_model_whose_name_is_an_alias_is_reported(fleet: Fleet, caplog: pytest.LogCaptureFixture) -> None:
    site = await start(fleet, "models: {large: {aliases: [small]}}")
    assert [record.getMessage() for record in caplog.records if "gets no requests" in record.getMessage()] == [
        f"127.0.0.1:{site.small.port} serves a model 'small', which gets no requests: "
        "in the fleet file, the name means another model"
    ]
    await site.post({"model": "small"})
    assert bodies(site.large) == [b'{"model": "large"}']
    assert await site.ids() == ["large", "small"]
    assert (await site.proxy.http.get("/v1/models/small")).json()["created"] == LARGE["created"]


# --- keys

KEYS = f"""\
keys:
  - {{name: alice, secret: {ALICE}, models: [large]}}
  - {{name: bob, secret: {BOB}, models: [gpt-4o, "claude-*"]}}
  - {{name: carol, secret: {CAROL}, models: [small-fast]}}
  - {{name: dave, secret: {DAVE}}}
"""


@pytest.fixture
async def locked(fleet: Fleet, tmp_path: Any) -> Site:
    file = tmp_path / "keys.yaml"
    file.write_text(KEYS)
    return await start(fleet, api_keys_file=str(file))


@pytest.mark.parametrize(
    ("key", "permitted"),
    [
        (ALICE, {"large", "gpt-4o", "claude-1"}),
        (BOB, {"gpt-4o", "claude-1"}),
        (CAROL, {"small-fast", None}),
        (DAVE, {"large", "gpt-4o", "claude-1", "small", "gpt-3.5", "small-fast", None}),
    ],
)
async def test_a_key_may_use_its_names_and_the_aliases_of_its_models(
    locked: Site, key: str, permitted: set[str | None]
) -> None:
    for name in ("large", "gpt-4o", "claude-1", "small", "gpt-3.5", "small-fast", None):
        status, _ = await locked.post({} if name is None else {"model": name}, authorization=f"Bearer {key}")
        assert (name, status) == (name, 200 if name in permitted else 403)


@pytest.mark.parametrize(
    ("key", "listed"),
    [
        (ALICE, ["large", "gpt-4o"]),
        (BOB, ["gpt-4o"]),
        (CAROL, ["small-fast"]),
        (DAVE, ["small-fast", "small", "large", "gpt-4o"]),
    ],
)
async def test_a_key_sees_what_it_may_use(locked: Site, key: str, listed: list[str]) -> None:
    assert await locked.ids(authorization=f"Bearer {key}") == listed
    for name in ("large", "gpt-4o", "claude-1", "small", "small-fast"):
        reply = await locked.proxy.http.get(f"/v1/models/{name}", headers={"authorization": f"Bearer {key}"})
        is_permitted = name in listed or (name == "claude-1" and key != CAROL)
        assert reply.status_code == (200 if is_permitted else 404)


async def test_only_permitted_names_are_suggested(locked: Site) -> None:
    for key, suggestion in ((CAROL, ""), (DAVE, " Did you mean 'gpt-4o'?")):
        reply = await locked.proxy.http.get("/v1/models/gpt-4", headers={"authorization": f"Bearer {key}"})
        assert reply.status_code == 404
        assert reply.json()["error"]["message"].endswith(f"not permitted for this key.{suggestion}")


async def test_equal_header_sections_are_checked_by_the_name_that_the_client_sent(locked: Site) -> None:
    """The proxy parses equal sections once, and must not keep the query that it sends to the engine."""
    for _ in range(2):
        reply = await locked.proxy.http.get("/slots?model=gpt-4o", headers={"authorization": f"Bearer {BOB}"})
        assert reply.status_code == 200
    assert [target for _, target, _ in locked.large.asked if "/slots" in target] == ["/slots?model=large"] * 2


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, b'{"model": null, "Model": "large"}'),
        (CHAT, b'{"model": "small-fast", "Model": "large"}'),
        (f"{CHAT}?model=large", b"{}"),
        ("/v1/embeddings", b"{}"),
        ("/v1/chat/completions/", b"{}"),
        (CHAT, b"{ not JSON"),
        (CHAT, '{"model": "small-fast"}'.encode("utf-16")),
    ],
)
async def test_a_limited_key_gets_only_its_model_by_the_default(locked: Site, path: str, body: bytes) -> None:
    status, _ = await locked.post(body, path, authorization=f"Bearer {CAROL}")
    assert status == 403
    assert locked.large.served == locked.small.served == []
