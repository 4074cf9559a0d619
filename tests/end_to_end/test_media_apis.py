"""Pictures and sounds that real llama.cpp servers see and hear, through the program."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import openai
import pytest

from end_to_end.apis import FORM, comparable, counts, form, start_proxy, tokens_of
from support.http_client import Reply, send
from support.llama_server import LlamaServer
from support.program import Proxy
from support.tiny_gguf import ModelShape, write_tiny_gguf
from support.tiny_mmproj import picture, sound, write_tiny_mmproj
from support.waiting import eventually

MODEL, ALIAS = "senses", "gpt-4o"
TRANSCRIPTION = {"temperature": "0", "max_tokens": "5"}
TRANSCRIPTIONS = "/v1/audio/transcriptions"


class Site:
    """Two servers that see and hear, and the program in front of them."""

    def __init__(self, model: Path, servers: list[LlamaServer], proxy: Proxy) -> None:
        self.model, self.servers, self.proxy = model, servers, proxy

    async def ask_both(self, path: str, body: dict[str, Any]) -> tuple[Reply, Reply]:
        """The reply of an engine to a JSON body, and that of the program, which gets the alias."""
        direct = await send(self.servers[0].url, path, {"model": MODEL} | body)
        return direct, await send(self.proxy.url, path, {"model": ALIAS} | body)

    async def upload_to_both(self, file: bytes, **fields: str) -> tuple[Reply, Reply]:
        """The same for a form."""
        direct = await send(self.servers[0].url, TRANSCRIPTIONS, form(file, model=MODEL, **fields), headers=FORM)
        return direct, await send(self.proxy.url, TRANSCRIPTIONS, form(file, model=ALIAS, **fields), headers=FORM)


def server(model: Path) -> LlamaServer:
    """A server that is starting."""
    projector = str(model.with_name("mmproj.gguf"))
    return LlamaServer(model, "--alias", MODEL, "--precise", "--mmproj", projector, wait=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("media")
    shape = ModelShape()
    model = write_tiny_gguf(folder / "model.gguf", shape)
    write_tiny_mmproj(folder / "mmproj.gguf", shape.embedding)
    with ExitStack() as stack:
        servers = [stack.enter_context(server(model)) for _ in range(2)]
        for started in servers:
            started.wait_until_ready()
        proxy = stack.enter_context(start_proxy(folder / "proxy", {MODEL: servers}, {MODEL: ALIAS}))
        yield Site(model, servers, proxy)


# --- pictures that a model sees


def showing(path: str, file: bytes) -> dict[str, Any]:
    """A request about a picture, in the dialect of ``path``."""
    encoded = base64.b64encode(file).decode()
    url = f"data:image/png;base64,{encoded}"
    if path == "/v1/responses":
        content = [{"type": "input_text", "text": "kin"}, {"type": "input_image", "image_url": url}]
        return {"input": [{"role": "user", "content": content}], "max_output_tokens": 6, "temperature": 0}
    source = {"type": "base64", "media_type": "image/png", "data": encoded}
    part: dict[str, Any] = {"type": "image_url", "image_url": {"url": url}}
    if path == "/v1/messages":
        part = {"type": "image", "source": source}
    return {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "kin"}, part]}],
        "max_tokens": 6,
        "temperature": 0,
    }


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
async def test_an_answer_about_a_picture_equals_that_of_the_engine(site: Site, path: str, stream: bool) -> None:
    answers = []
    for seed in (0, 1):
        body = showing(path, picture(32, seed)) | ({"stream": True} if stream else {})
        direct, proxied = await site.ask_both(path, body)
        assert direct.status == 200
        assert comparable(proxied) == comparable(direct)
        answers.append(comparable(direct))
    assert answers[0] != answers[1]  # so the model saw them


async def test_a_picture_of_five_megabytes_arrives_whole(site: Site) -> None:
    body = showing("/v1/chat/completions", picture(1300, 1))
    direct, proxied = await site.ask_both("/v1/chat/completions", body)
    assert len(json.dumps(body)) > 6_500_000
    assert direct.status == 200
    assert comparable(proxied) == comparable(direct)


async def test_a_picture_that_is_none_gets_the_error_of_the_engine(site: Site) -> None:
    direct, proxied = await site.ask_both("/v1/chat/completions", showing("/v1/chat/completions", b"no picture"))
    assert direct.status == 400
    assert (proxied.status, proxied.body) == (direct.status, direct.body)


# --- sounds that a model hears


@pytest.mark.parametrize("more", [{}, {"stream": "true"}])
async def test_a_transcription_equals_that_of_the_engine(site: Site, more: dict[str, str]) -> None:
    direct, proxied = await site.upload_to_both(sound(1, 1), **TRANSCRIPTION, **more)
    assert direct.status == 200
    assert direct.headers["content-type"].startswith("text/event-stream") is bool(more)
    assert comparable(proxied) == comparable(direct)


async def test_the_openai_sdk_uploads_a_sound(site: Site) -> None:
    async with openai.AsyncOpenAI(base_url=f"{site.proxy.url}/v1", api_key="none", max_retries=0) as client:
        file = ("noise.wav", sound(1, 1))
        told = await client.audio.transcriptions.create(
            model=ALIAS, file=file, temperature=0, extra_body={"max_tokens": 5}
        )
        stream = await client.audio.transcriptions.create(
            model=ALIAS, file=file, temperature=0, stream=True, extra_body={"max_tokens": 5}
        )
        deltas = [event.delta async for event in stream if event.type == "transcript.text.delta"]
    assert told.text
    assert "".join(deltas) == told.text


async def test_sounds_get_the_errors_of_the_engine(site: Site) -> None:
    for file, fields in ((b"no sound", {}), (sound(0.1, 1), {"response_format": "srt"})):
        direct, proxied = await site.upload_to_both(file, **fields)
        assert direct.status == 400
        assert (proxied.status, proxied.body) == (direct.status, direct.body)


async def test_a_form_without_a_known_model_gets_an_error_of_the_proxy(site: Site) -> None:
    reply = await send(site.proxy.url, TRANSCRIPTIONS, form(sound(0.1, 1), model="nobody"), headers=FORM)
    assert (reply.status, reply.json["error"]["code"]) == (404, "model_not_found")


async def test_a_transcription_is_counted_and_survives_a_kill(site: Site, tmp_path: Path) -> None:
    with ExitStack() as stack:
        dying = stack.enter_context(server(site.model))
        dying.wait_until_ready()
        servers = {MODEL: [site.servers[0], dying]}
        proxy = stack.enter_context(start_proxy(tmp_path / "proxy", servers, {MODEL: ALIAS}))
        dying.freeze()
        body = form(sound(1, 1), model=ALIAS, **TRANSCRIPTION)

        async def has_request() -> bool:
            return bool((await proxy.backend(dying))["requests_in_flight"])

        async with asyncio.TaskGroup() as group:
            upload = [group.create_task(send(proxy.url, TRANSCRIPTIONS, body, headers=FORM)) for _ in range(2)]
            await eventually(has_request)
            dying.kill()
        replies = [task.result() for task in upload]
        read, written = tokens_of(replies[0])
        assert [reply.status for reply in replies] == [200, 200]
        assert read > 700
        await counts(proxy, {MODEL: (2, 0, 2 * read, 2 * written)})
