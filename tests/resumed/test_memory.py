"""A stream that can be resumed holds little more memory than its text, and gives it back."""

from __future__ import annotations

import asyncio
import json
import resource
from contextlib import AsyncExitStack
from pathlib import Path

from support.engine import STREAM_HEAD, Engine, chunk
from support.fakes.engine import EngineConnection
from support.http_client import chat
from support.program import Proxy, fresh_program

KIBIBYTE = 1024
STREAMS = 1000
TEXT_BYTES = 16 * KIBIBYTE
EVENTS = 64
MOST_BYTES = 2.5 * TEXT_BYTES  # the text, the latest 16 KiB of events as they came, and what the allocator adds
BODY = json.dumps(chat(stream=True)).encode()
REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


def event(content: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": content}, "finish_reason": finish}
    members = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return chunk(b"data: " + json.dumps(members).encode() + b"\n\n")


PIECE = event("x" * (TEXT_BYTES // EVENTS))
END = event("", "stop") + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"


class Round:
    """Many streams at once. Each one begins, then delivers its text, and then ends."""

    def __init__(self) -> None:
        self._delivered, self._ended = asyncio.Event(), asyncio.Event()

    async def answer(self, connection: EngineConnection) -> None:
        connection.send(STREAM_HEAD, event("first"))
        await self._delivered.wait()
        for _ in range(EVENTS):
            connection.send(PIECE)
            await asyncio.sleep(0)  # the events of all streams alternate
        connection.send(event("last"))
        await self._ended.wait()
        connection.send(END)

    async def resident_bytes(self, proxy: Proxy) -> tuple[int, int]:
        """Memory of the proxy when all streams have begun, and when they have delivered their texts."""
        address = proxy.url.removeprefix("http://").split(":")
        async with AsyncExitStack() as stack:
            readers = []
            for _ in range(STREAMS):  # one after the other, so that the proxy is never too busy to take one
                reader, writer = await asyncio.open_connection(*address, limit=1024 * KIBIBYTE)
                stack.callback(writer.close)
                writer.write(REQUEST)
                await reader.readuntil(b'"first"')
                readers.append(reader)
            begun = resident_bytes(proxy)
            self._delivered.set()
            await asyncio.gather(*(reader.readuntil(b'"last"') for reader in readers))
            delivered = resident_bytes(proxy)
            self._ended.set()
            ends = await asyncio.gather(*(reader.readuntil(b"\r\n0\r\n\r\n") for reader in readers))
        assert all(end.count(b"data: [DONE]") == 1 for end in ends)
        return begun, delivered


def resident_bytes(proxy: Proxy) -> int:
    pages = int(Path(f"/proc/{proxy.pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


async def test_a_thousand_streams_hold_their_text_and_give_it_back(tmp_path: Path) -> None:
    async with Engine() as engine, fresh_program(tmp_path, engine) as proxy:
        rounds = [Round(), Round()]
        sizes = []
        for one in rounds:
            engine.answer = one.answer
            sizes.append(await one.resident_bytes(proxy))
    (begun, delivered), (_, again) = sizes
    assert TEXT_BYTES < (delivered - begun) / STREAMS < MOST_BYTES
    assert (again - delivered) / STREAMS < 4 * KIBIBYTE
