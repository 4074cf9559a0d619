"""Two real ``whisper-server`` of whisper.cpp with a model without weights, and the proxy in front of them.

``WHISPER_SERVER`` names the program.
"""

from __future__ import annotations

import asyncio
import io
import os
import struct
import wave
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from real_engines.engine_process import EngineProcess, running
from support.http_client import Reply, send
from support.program import Proxy, program
from support.waiting import eventually

pytestmark = pytest.mark.skipif("WHISPER_SERVER" not in os.environ, reason="WHISPER_SERVER names no whisper-server")

TRANSCRIPTIONS = "/v1/audio/transcriptions"
FLEET = """
backends:
  - {url: %s, models: [whisper-1]}
  - {url: %s, models: [whisper-1]}
"""
# whisper_model_load() in whisper.cpp's src/whisper.cpp: a file without tensors is an empty model, for tests.
MAGIC = 0x67676D6C
SIZES = (51865, 1500, 128, 2, 4, 448, 128, 2, 4, 80, 1)  # as of whisper-tiny, with a third of its width
MEL_FILTERS = (80, 201)
WORDS = (b" ", b" -", b" '")  # it looks these up


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whisper") / "empty.bin"
    filters = struct.pack("<2i", *MEL_FILTERS) + bytes(4 * MEL_FILTERS[0] * MEL_FILTERS[1])
    words = struct.pack("<i", len(WORDS)) + b"".join(struct.pack("<I", len(word)) + word for word in WORDS)
    path.write_bytes(struct.pack("<I11i", MAGIC, *SIZES) + filters + words)
    return path


@pytest.fixture(scope="module")
def started(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[EngineProcess]]:
    options = f"--model {model} --threads 1 --inference-path {TRANSCRIPTIONS} --host 127.0.0.1 --port"
    command = [os.environ["WHISPER_SERVER"], *options.split()]
    with running(2, lambda port: [*command, str(port)], tmp_path_factory.mktemp("engines")) as engines:
        yield engines


@pytest.fixture
async def proxy(engines: list[EngineProcess], tmp_path: Path) -> AsyncIterator[Proxy]:
    (tmp_path / "fleet.yaml").write_text(FLEET % tuple(engine.url for engine in engines))
    settings = {"METRICS_CACHE_TTL_SECONDS": "0.5", "CONFIG_FILE": "fleet.yaml"}
    async with program(tmp_path, *engines, **settings) as running_proxy:
        for engine in engines:
            await running_proxy.becomes(engine, "up")
        yield running_proxy


def form(**fields: bytes) -> tuple[bytes, dict[str, str]]:
    """A multipart form, and its content type."""
    parts = [
        b'--b\r\nContent-Disposition: form-data; name="%b"%b\r\n\r\n%b\r\n'
        % (name.encode(), b'; filename="speech.wav"' if name == "file" else b"", value)
        for name, value in fields.items()
    ]
    return b"".join(parts) + b"--b--\r\n", {"content-type": "multipart/form-data; boundary=b"}


def second_of_silence() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as audio:
        audio.setparams((1, 2, 16_000, 0, "NONE", ""))
        audio.writeframes(bytes(2 * 16_000))
    return file.getvalue()


async def transcribe(url: str, model: bytes = b"whisper-1") -> Reply:
    body, headers = form(file=second_of_silence(), model=model, response_format=b"json")
    return await send(url, TRANSCRIPTIONS, body, headers=headers)


async def load(engine: EngineProcess, model: Path) -> Reply:
    body, headers = form(model=str(model).encode())
    return await send(engine.url, "/load", body, headers=headers)


async def test_they_are_identified_and_take_one_request_at_a_time(proxy: Proxy) -> None:
    for detail in (await proxy.details()).values():
        assert (detail["engine"], detail["models"], detail["slots"]) == ("whispercpp", ["whisper-1"], 1)


async def test_a_file_is_transcribed(proxy: Proxy) -> None:
    reply = await transcribe(proxy.url)
    assert (reply.status, list(reply.json)) == (200, ["text"])


async def test_requests_wait_in_the_proxy(proxy: Proxy) -> None:
    """In the engine, each waiting request would occupy one of its HTTP threads."""
    seen: set[int] = set()

    async def some_wait() -> bool:
        health = await proxy.health()
        seen.update(one["requests_in_flight"] for one in health["details"])
        return bool(health["queue"]["requests"] >= 3)

    async with asyncio.TaskGroup() as group:
        requests = [group.create_task(transcribe(proxy.url)) for _ in range(8)]
        await eventually(some_wait)
    assert {request.result().status for request in requests} == {200}
    assert max(seen) <= 2  # one, and one of BACKEND_QUEUE_ALLOWANCE


async def test_it_counts_as_starting_until_it_has_loaded_another_model(
    proxy: Proxy, engines: list[EngineProcess], model: Path
) -> None:
    assert (await load(engines[0], Path("/no/such/model"))).status == 400
    await proxy.becomes(engines[0], "starting")
    assert (await proxy.backend(engines[0]))["reason"] == "loading another model"
    assert (await load(engines[0], model)).status == 200
    await proxy.becomes(engines[0], "up")


async def test_clients_cannot_load_a_model(proxy: Proxy) -> None:
    assert (await proxy.post("/load", {"model": "x"})).status == 403


async def test_it_works_below_a_request_path(model: Path, tmp_path: Path) -> None:
    options = f"--model {model} --request-path /v1/audio --inference-path /transcriptions --host 127.0.0.1 --port"
    command = [os.environ["WHISPER_SERVER"], *options.split()]
    with running(1, lambda port: [*command, str(port)], tmp_path) as engines:
        await eventually(lambda: answers(engines[0]))
        async with program(tmp_path / "proxy", *engines) as proxy:
            await proxy.becomes(engines[0], "up")
            assert (await transcribe(proxy.url)).status == 200


async def answers(engine: EngineProcess) -> bool:
    try:
        return (await send(engine.url, "/v1/audio/health")).status == 200
    except OSError:
        return False


async def test_no_request_is_lost_when_one_is_killed(proxy: Proxy, engines: list[EngineProcess]) -> None:
    """The last test: one engine stays dead."""

    async def both_work() -> bool:
        return all([(await proxy.backend(engine))["requests_in_flight"] for engine in engines])

    async with asyncio.TaskGroup() as group:
        requests = [group.create_task(transcribe(proxy.url)) for _ in range(6)]
        await eventually(both_work)
        engines[0].kill()
    assert {request.result().status for request in requests} == {200}
    await proxy.becomes(engines[0], "down")
