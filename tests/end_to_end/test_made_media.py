"""Pictures and speech that engines make, through the program. The engines are scripted."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import openai
import pytest

from end_to_end.apis import FORM, counts, form, start_proxy
from support.engine import STREAM_HEAD, Answer, Engine, answers_with, chunk
from support.fakes.engine import EngineConnection, http_reply
from support.http_client import Call, send
from support.program import Proxy
from support.tiny_mmproj import picture

MODEL, ALIAS = "maker", "gpt-image-1"
JSON = b"content-type: application/json\r\n"
# Replies of OpenAI's API reference (images, audio), read November 2026; stable-diffusion.cpp's server reports no usage.
IMAGE = base64.b64encode(picture(300, 1))
IMAGES = b'{"created":1713833628,"data":[{"b64_json":"%b"}]%%b}' % IMAGE
IMAGE_USAGE = (
    b',"usage":{"total_tokens":100,"input_tokens":50,"output_tokens":50,"input_tokens_details":{"text_tokens":10}}'
)
SPEECH = [
    b'data: {"type":"speech.audio.delta","audio":"%b"}\n\n' % base64.b64encode(bytes(999)),
    b'data: {"type":"speech.audio.done","usage":{"input_tokens":14,"output_tokens":101,"total_tokens":115}}\n\n',
]


class Making:
    """Two scripted engines and the program in front of them."""

    def __init__(self, engines: list[Engine], proxy: Proxy) -> None:
        self.engines, self.proxy = engines, proxy

    def answer(self, answer: Answer) -> None:
        for engine in self.engines:
            engine.answer = answer

    @property
    def bodies(self) -> list[bytes]:
        """Of the requests that the engines got."""
        return [request.partition(b"\r\n\r\n")[2] for engine in self.engines for request in engine.served]


@pytest.fixture
async def making(tmp_path: Path) -> Any:
    models = [{"id": MODEL, "object": "model"}]
    async with Engine(owner="other", models=models) as one, Engine(owner="other", models=models) as other:
        engines = {MODEL: [one, other]}
        proxy = await asyncio.to_thread(start_proxy, tmp_path / "proxy", engines, {MODEL: ALIAS})
        try:
            yield Making([one, other], proxy)
        finally:
            await asyncio.to_thread(proxy.stop)


@pytest.mark.parametrize(("usage", "row"), [(IMAGE_USAGE, (1, 0, 50, 50)), (b"", (1, 1, 3, 0))])
async def test_a_picture_that_an_engine_makes_arrives_unchanged(
    making: Making, usage: bytes, row: tuple[int, ...]
) -> None:
    making.answer(answers_with(http_reply(IMAGES % usage, fields=JSON)))
    reply = await making.proxy.post("/v1/images/generations", {"model": ALIAS, "prompt": "a small dog"})
    assert reply.body == IMAGES % usage
    assert json.loads(making.bodies[0]) == {"model": MODEL, "prompt": "a small dog"}
    await counts(making.proxy, {MODEL: row})


async def test_a_form_that_edits_a_picture_names_the_model_of_the_engine(making: Making) -> None:
    making.answer(answers_with(http_reply(IMAGES % IMAGE_USAGE, fields=JSON)))
    body = form(picture(600, 2), model=ALIAS, prompt="more dogs")
    reply = await send(making.proxy.url, "/v1/images/edits", body, headers=FORM)
    assert reply.status == 200
    assert making.bodies == [form(picture(600, 2), model=MODEL, prompt="more dogs")]


async def test_speech_arrives_as_it_is_made(making: Making) -> None:
    made, rest = bytes(range(256)) * 40, bytes(range(255, -1, -1)) * 40
    is_heard = asyncio.Event()

    async def speak(connection: EngineConnection) -> None:
        connection.send(
            b"HTTP/1.1 200 OK\r\ncontent-type: audio/mpeg\r\ntransfer-encoding: chunked\r\n\r\n", chunk(made)
        )
        await is_heard.wait()
        connection.send(chunk(rest), b"0\r\n\r\n")

    making.answer(speak)
    body = {"model": ALIAS, "input": "a small dog", "voice": "alloy"}
    async with Call(making.proxy.url, "/v1/audio/speech", body) as call:
        call.send()
        assert await call.head() == 200
        assert call.headers["content-type"] == "audio/mpeg"
        assert await call.piece() == made
        is_heard.set()
        assert (await call.reply()).body == rest
        assert call.complete
    await counts(making.proxy, {MODEL: (1, 1, 3, 0)})


async def test_a_transcription_that_breaks_ends_with_an_error_that_sdks_raise(making: Making) -> None:
    delta = b'data: {"type":"transcript.text.delta","delta":"kin"}\n\n'

    async def breaks(connection: EngineConnection) -> None:
        connection.send(STREAM_HEAD, chunk(delta))
        await asyncio.sleep(0.1)
        connection.reset()

    making.answer(breaks)
    async with openai.AsyncOpenAI(base_url=f"{making.proxy.url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.audio.transcriptions.create(model=ALIAS, file=("a.wav", b"RIFF"), stream=True)
        events = aiter(stream)
        assert (await anext(events)).type == "transcript.text.delta"
        with pytest.raises(openai.APIError, match="closed the connection"):
            await anext(events)


async def test_speech_as_events_is_counted_as_the_engine_reports_it(making: Making) -> None:
    making.answer(answers_with(STREAM_HEAD, *map(chunk, SPEECH), b"0\r\n\r\n"))
    body = {"model": ALIAS, "input": "a small dog", "voice": "alloy", "stream_format": "sse"}
    assert (await making.proxy.post("/v1/audio/speech", body)).body == b"".join(SPEECH)
    await counts(making.proxy, {MODEL: (1, 0, 14, 101)})


@pytest.mark.parametrize("path", ["/v1/images/generations", "/v1/audio/speech"])
async def test_a_request_for_media_is_repeated_after_a_break(making: Making, path: str) -> None:
    broken: list[int] = []

    async def breaks_once(connection: EngineConnection) -> None:
        if broken:
            connection.send(http_reply(b"{}", fields=JSON))
        else:
            broken.append(1)
            connection.reset()

    making.answer(breaks_once)
    reply = await making.proxy.post(path, {"model": ALIAS, "prompt": "a", "input": "a"})
    assert (reply.status, reply.body) == (200, b"{}")
    assert sorted(len(engine.served) for engine in making.engines) == [1, 1]
