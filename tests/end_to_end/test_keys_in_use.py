"""Keys in use: their models, their limits, SDKs, and changes of the key file."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import anthropic
import openai
import pytest
from anthropic.types import MessageParam
from openai.types.chat import ChatCompletionUserMessageParam

from end_to_end.conftest import StartProxy
from end_to_end.recording import RecordingEngine
from support.http_client import Call, Reply, chat, send
from support.llama_server import LlamaServer
from support.program import Proxy
from support.waiting import eventually

CHAT = "/v1/chat/completions"
NAMES = ("free", "ours", "twice", "tokens", "single", "late", "anthropic")
SECRETS = {name: f"sk-{name}-0123456789abcdef" for name in NAMES}
KEYS = f"""\
keys:
  - {{name: free, secret: {SECRETS["free"]}}}
  - {{name: ours, secret: {SECRETS["ours"]}, models: [tiny, other]}}
  - {{name: twice, secret: {SECRETS["twice"]}, requests_per_minute: 2}}
  - {{name: tokens, secret: {SECRETS["tokens"]}, tokens_per_minute: 30}}
  - {{name: single, secret: {SECRETS["single"]}, concurrent_requests: 1}}
  - {{name: late, secret: {SECRETS["late"]}, expires: 2026-01-01}}
  - {{name: anthropic, secret: {SECRETS["anthropic"]}, requests_per_minute: 1}}
"""
QUESTION: list[ChatCompletionUserMessageParam] = [{"role": "user", "content": "kin sol mer"}]
MESSAGES: list[MessageParam] = [{"role": "user", "content": "kin sol mer"}]


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[LlamaServer]:
    with LlamaServer(tiny_model, "--slots", "2", "--context", "16384", "--alias", "tiny") as server:
        yield server


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory, server: LlamaServer) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("proxy")
    (folder / "keys.yaml").write_text(KEYS)
    with Proxy(folder, [server.url], API_KEYS_FILE="keys.yaml") as proxy:
        yield proxy


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {SECRETS[name]}"}


async def ask(proxy: Proxy, name: str, body: object = None, *, target: str = CHAT, **fields: str) -> Reply:
    return await send(proxy.url, target, body, headers=bearer(name) | fields)


# --- models


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param(chat(model="tiny"), 200, id="permitted"),
        pytest.param(chat(model="secret"), 403, id="another"),
        pytest.param(chat(), 403, id="none: the engine would choose"),
        pytest.param(b'{"model":"tiny","model":"secret","messages":[]}', 403, id="two"),
        pytest.param(b'{"model":"tiny","\\u006dodel":"secret","messages":[]}', 403, id="two, one with an escape"),
        pytest.param(b'{"\\u006dodel":"secret","messages":[]}', 403, id="with an escape"),
        pytest.param(b'{"model":"tiny","messages":[],"x":NaN}', 403, id="no JSON"),
        pytest.param(b'\xef\xbb\xbf{"model":"secret","messages":[]}', 403, id="byte order mark"),
    ],
)
async def test_key_permits_only_its_models(proxy: Proxy, body: object, status: int) -> None:
    reply = await ask(proxy, "ours", body)

    assert reply.status == status
    assert ("x-backend" in reply.headers) is (status == 200)
    if status == 403:
        assert reply.json["error"]["code"] == "model_not_permitted"
        message = reply.json["error"]["message"]
        assert "other, tiny" in message or "not certain which model" in message


async def test_key_with_models_reaches_no_path_without_a_model(proxy: Proxy) -> None:
    for target in ("/slots", "/props", "/props?model=secret", "/props?model=tiny&model=x"):
        assert (await ask(proxy, "ours", target=target)).status == 403
        assert (await ask(proxy, "free", target=target)).status != 403
    assert (await ask(proxy, "ours", target="/props?model=tiny")).status == 200


async def test_model_list_shows_only_the_models_of_the_key(start_proxy: StartProxy, tmp_path: Path) -> None:
    async with RecordingEngine() as engine:
        key = f"keys: [{{name: a, secret: {SECRETS['free']}, models: [none]}}, {{name: b, secret: {SECRETS['ours']}}}]"
        (file := tmp_path / "few.yaml").write_text(key)
        few = await asyncio.to_thread(start_proxy, engine.url, API_KEYS_FILE=str(file))
        for name, ids in (("free", []), ("ours", ["tiny"])):
            listing = (await ask(few, name, target="/v1/models")).json
            assert [entry["id"] for entry in listing["data"]] == ids


async def test_key_permits_only_its_models_in_forms(start_proxy: StartProxy, tmp_path: Path) -> None:
    async with RecordingEngine() as engine:
        (tmp_path / "keys.yaml").write_text(KEYS)
        proxy = await asyncio.to_thread(start_proxy, engine.url, API_KEYS_FILE=str(tmp_path / "keys.yaml"))

        async def transcribe(*models: str) -> int:
            parts = "".join(f'--X\r\nContent-Disposition: form-data; name="model"\r\n\r\n{name}\r\n' for name in models)
            fields = {"Content-Type": "multipart/form-data; boundary=X"}
            form = f"{parts}--X--\r\n".encode()
            return (await ask(proxy, "ours", form, target="/v1/audio/transcriptions", **fields)).status

        for models in (["secret"], ["tiny", "secret"], ["secret", "tiny"], ["tiny", "tiny"], []):
            assert await transcribe(*models) == 403
        assert engine.forwarded == []
        assert await transcribe("tiny") == 200
        async with openai.AsyncOpenAI(base_url=f"{proxy.url}/v1", api_key=SECRETS["ours"], max_retries=0) as client:
            await client.audio.transcriptions.create(model="tiny", file=("a.wav", b"RIFF....WAVE"))
            with pytest.raises(openai.PermissionDeniedError):
                await client.audio.transcriptions.create(model="secret", file=("a.wav", b"RIFF....WAVE"))
        assert len(engine.forwarded) == 2


# --- limits


async def test_key_beyond_its_requests_per_minute_gets_retry_after(proxy: Proxy) -> None:
    replies = [await ask(proxy, "twice", chat()) for _ in range(3)]

    assert [reply.status for reply in replies] == [200, 200, 429]
    assert [reply.headers["x-ratelimit-remaining-requests"] for reply in replies] == ["1", "0", "0"]
    assert {reply.headers["x-ratelimit-limit-requests"] for reply in replies} == {"2"}
    assert 1 <= int(replies[2].headers["retry-after"]) <= 30
    assert replies[2].json["error"]["type"] == "rate_limit_error"
    assert replies[2].json["error"]["code"] == "rate_limit_exceeded"
    assert "x-backend" not in replies[2].headers
    assert "x-ratelimit-limit-requests" not in (await ask(proxy, "free", chat())).headers


async def test_tokens_are_counted_as_the_engine_reports_them(proxy: Proxy) -> None:
    whole = await ask(proxy, "tokens", chat(4, model="tiny"))
    used = whole.json["usage"]["total_tokens"]
    assert whole.headers["x-ratelimit-remaining-tokens"] == "30"
    stream = await ask(proxy, "tokens", chat(30, stream=True))

    assert abs(int(stream.headers["x-ratelimit-remaining-tokens"]) - (30 - used)) <= 1
    refused = await ask(proxy, "tokens", chat(1))
    assert (refused.status, refused.headers["x-ratelimit-remaining-tokens"]) == (429, "0")
    assert int(refused.headers["retry-after"]) > 1


async def test_key_has_no_more_concurrent_requests_than_allowed(proxy: Proxy) -> None:
    async with Call(proxy.url, CHAT, chat(4000, stream=True), headers=bearer("single")) as first:
        first.send()
        assert await first.head() == 200
        refused = await ask(proxy, "single", chat())
        assert (refused.status, refused.headers["retry-after"]) == (429, "1")
        assert (await ask(proxy, "free", chat(1))).status == 200

    async def is_served() -> bool:
        return (await ask(proxy, "single", chat(1))).status == 200

    await eventually(is_served)  # the client has disconnected


async def test_expired_key_is_refused(proxy: Proxy) -> None:
    reply = await ask(proxy, "late", chat())

    assert (reply.status, reply.json["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize("names_backend", ["true", "false"])
async def test_limit_headers_are_sent_whether_or_not_backends_are_shown(
    start_proxy: StartProxy, tmp_path: Path, names_backend: str
) -> None:
    async with RecordingEngine() as engine:
        (tmp_path / "keys.yaml").write_text(KEYS)
        proxy = await asyncio.to_thread(
            start_proxy, engine.url, API_KEYS_FILE=str(tmp_path / "keys.yaml"), BACKEND_HEADER=names_backend
        )
        reply = await ask(proxy, "twice", chat())

    assert reply.headers["x-ratelimit-limit-requests"] == "2"
    assert ("x-backend" in reply.headers) is (names_backend == "true")


# --- SDKs


def test_openai_sdk_sends_its_key(proxy: Proxy) -> None:
    with openai.OpenAI(base_url=f"{proxy.url}/v1", api_key=SECRETS["free"], max_retries=0) as client:
        assert client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=3).choices
        assert [model.id for model in client.models.list()] == ["tiny"]
        with client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=9, stream=True) as stream:
            assert sum(bool(chunk.choices[0].delta.content) for chunk in stream) == 9


def test_openai_sdk_recognizes_refusals_of_the_proxy(proxy: Proxy) -> None:
    def refusal(secret: str, model: str = "tiny") -> openai.APIStatusError:
        with openai.OpenAI(base_url=f"{proxy.url}/v1", api_key=secret, max_retries=0) as client:
            with pytest.raises(openai.APIStatusError) as caught:
                client.chat.completions.create(model=model, messages=QUESTION, max_tokens=1)
        return caught.value

    assert isinstance(refusal("wrong"), openai.AuthenticationError)
    assert isinstance(refusal(SECRETS["ours"], "secret"), openai.PermissionDeniedError)
    exceeded = refusal(SECRETS["tokens"])  # its tokens were used up by an earlier test or by the first request
    assert isinstance(exceeded, openai.RateLimitError)
    assert int(exceeded.response.headers["retry-after"]) >= 1


def test_anthropic_sdk_sends_its_key_and_recognizes_refusals(proxy: Proxy) -> None:
    def ask_as(secret: str) -> anthropic.types.Message:
        with anthropic.Anthropic(base_url=proxy.url, api_key=secret, max_retries=0) as client:
            return client.messages.create(model="tiny", messages=MESSAGES, max_tokens=3)

    assert ask_as(SECRETS["anthropic"]).usage.output_tokens == 3
    with pytest.raises(anthropic.AuthenticationError):
        ask_as("wrong")
    with pytest.raises(anthropic.RateLimitError) as exceeded:
        ask_as(SECRETS["anthropic"])
    assert int(exceeded.value.response.headers["retry-after"]) >= 1


# --- changes of the key file


async def test_changed_key_file_applies_to_open_connections_too(start_proxy: StartProxy, tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    old, new = ("keys: [{name: a, secret: " + SECRETS[name] + "}]\n" for name in ("free", "ours"))
    file.write_text(old)
    async with RecordingEngine() as engine:
        proxy = await asyncio.to_thread(start_proxy, engine.url, API_KEYS_FILE=str(file))
        reader, writer = await asyncio.open_connection("127.0.0.1", int(proxy.url.rpartition(":")[2]))

        async def status_of_the_old_key() -> int:
            writer.write(f"GET /x HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {SECRETS['free']}\r\n\r\n".encode())
            section = await reader.readuntil(b"\r\n\r\n")
            status = int(section[9:12])
            if status == 200:
                await reader.readuntil(b"]}")
            return status

        assert await status_of_the_old_key() == 200
        file.write_text("keys: [")
        await eventually(lambda: "the previous keys stay valid" in proxy.events)
        assert await status_of_the_old_key() == 200
        assert (await ask(proxy, "ours", chat())).status == 401

        file.write_text(new)
        await eventually(lambda: "keys: reloaded, 1 valid" in proxy.events)
        assert await status_of_the_old_key() == 401
        writer.close()
        await writer.wait_closed()
        assert (await ask(proxy, "ours", chat())).status == 200
        assert proxy.events.count("the previous keys stay valid") == 1
