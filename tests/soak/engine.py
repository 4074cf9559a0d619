"""An engine that imitates a vLLM server or an unknown engine, and misbehaves on command.

``python engine.py PORT KIND``, with ``vllm`` or ``other`` as KIND. Each line of standard input is a JSON object with
changed ``Orders``; the answer is one line of JSON with the state. The engine ends with its standard input.

All its replies repeat the ``user`` of the request and number the events, so that a client can detect the reply of
another request, and a gap. Each event has the request's ``pad`` as its text; a stream that begins with such a text is
continued with the next number.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import sys
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import uvloop

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER, on, zero seconds
_MALFORMED_HEADS = (
    b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: 5, 7\r\n\r\nhello",
    b"\x16\x03\x01\x02\x00 this is no HTTP\r\n\r\n",
)
_PROMPT = json.dumps({"tokens": [1], "prompt": "<assistant>begun \n\n"})
_FAILURES = {
    "503": ("503 Service Unavailable", ""),
    "500": ("500 Internal Server Error", ""),
    "429": ("429 Too Many Requests", "retry-after: 1\r\n"),
}


@dataclass(slots=True)
class Orders:
    """How the engine behaves.

    Attributes:
        answers: how it answers requests for a model: ``well``, ``503``, ``500``, ``429``, ``reset``, ``slow`` or
        ``malformed``.
        listens: whether it accepts connections.
        health: ``well``, or ``hangs``: polls get no answer.
        metrics: whether it has a metrics page.
        first_byte_seconds: from a request to the first byte, and from there to the end of a reply without a stream.
        slow_seconds: the same while it is ``slow``.
        token_seconds: from one event of a stream to the next.
    """

    answers: str = "well"
    listens: bool = True
    health: str = "well"
    metrics: bool = True
    first_byte_seconds: float = 0.05
    slow_seconds: float = 4.0
    token_seconds: float = 0.04


@dataclass(slots=True)
class Engine:
    """The state shared by all connections."""

    kind: str
    orders: Orders = field(default_factory=Orders)
    running: int = 0
    taken: int = 0
    tokens: int = 0

    def page(self, path: str) -> tuple[str, str, str]:
        """Status, type and body of the reply to a poll."""
        if path == "/health":
            return "200 OK", "text/plain", ""
        if path == "/v1/models":
            models = [{"id": name, "object": "model", "created": 0, "owned_by": self.kind} for name in ("tiny", "soak")]
            return "200 OK", "application/json", json.dumps({"object": "list", "data": models})
        if path == "/metrics" and self.orders.metrics and self.kind == "vllm":
            values = {
                "num_requests_running": self.running,
                "num_requests_waiting": 0,
                "prompt_tokens_total": self.taken,
                "generation_tokens_total": self.tokens,
            }
            page = "".join(f'vllm:{name}{{engine="0"}} {float(value)}\n' for name, value in values.items())
            return "200 OK", "text/plain; version=0.0.4", page
        return "404 Not Found", "application/json", '{"detail":"Not Found"}'


class Connection(asyncio.Protocol):
    """One connection; it reads the next request after it has answered the previous one."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._orders = engine.orders
        self._buffer = b""
        self._task: asyncio.Task[None] | None = None
        self._may_write = asyncio.Event()
        self._may_write.set()
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._may_write.set()
        if self._task is not None:
            self._task.cancel()  # as vLLM does: the work is dropped when the client has left

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._read_request()

    def _read_request(self) -> None:
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        if self._task is not None or not separator:
            return
        request_line, _, fields = head.lower().partition(b"\r\n")
        _, _, length = fields.partition(b"content-length:")
        length_bytes = int(length.split(b"\r\n", 1)[0]) if length else 0
        if len(rest) < length_bytes:
            return
        body, self._buffer = rest[:length_bytes], rest[length_bytes:]
        method, path, *_ = request_line.decode("latin-1").split(" ")
        self._task = asyncio.get_running_loop().create_task(
            self._answer(method, path.partition("?")[0], body, closes=b"connection: close" in fields)
        )

    async def _answer(self, method: str, path: str, body: bytes, *, closes: bool) -> None:
        if path in ("/tokenize", "/detokenize"):
            self._reply("200 OK", "application/json", _PROMPT)
        elif method == "post":
            self._engine.running += 1
            self._engine.taken += 1
            try:
                await self._generate(body)
            finally:
                self._engine.running -= 1
        elif self._orders.health == "well":
            self._reply(*self._engine.page(path))
        else:
            await asyncio.Event().wait()  # until the proxy closes the connection
        self._task = None
        if closes:
            self._transport.close()
        elif self._buffer:
            self._read_request()

    async def _generate(self, body: bytes) -> None:
        try:
            asked = json.loads(body)
            user, count, pad = str(asked["user"]), int(asked["max_tokens"]), "x" * int(asked.get("pad", 1))
        except (ValueError, KeyError, TypeError):
            self._reply("400 Bad Request", "application/json", '{"error":{"message":"not readable","code":400}}')
            return
        answers = self._orders.answers
        if answers in _FAILURES:
            status, fields = _FAILURES[answers]
            self._reply(status, "application/json", json.dumps({"error": {"message": user, "code": answers}}), fields)
            return
        await asyncio.sleep(self._orders.slow_seconds if answers == "slow" else self._orders.first_byte_seconds)
        if answers == "malformed" and count % 2:
            self._transport.write(_MALFORMED_HEADS[count % len(_MALFORMED_HEADS)])
            self._transport.close()
        elif asked.get("stream"):
            begun = _begun(asked, pad)
            breaks_after = begun + count // 2 if answers in ("reset", "malformed") else None
            await self._stream(user, range(begun + 1, begun + count + 1), pad, breaks_after)
        else:
            await self._whole(user, count, pad)

    async def _stream(self, user: str, numbers: range, pad: str, breaks_after: int | None) -> None:
        write = self._transport.write
        write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for number in numbers:
            await self._may_write.wait()
            self._engine.tokens += 1
            write(_chunk(_event(user, {"content": pad}, None, n=number, of=numbers.stop - 1)))
            await asyncio.sleep(self._orders.token_seconds)
            if number == breaks_after:
                if self._orders.answers == "malformed":
                    write(b"this is no chunk size\r\n")
                self._reset()
                return
        write(_chunk(_event(user, {}, "stop")) + _chunk("data: [DONE]\n\n") + b"0\r\n\r\n")

    async def _whole(self, user: str, count: int, pad: str) -> None:
        await asyncio.sleep(self._orders.token_seconds * count / 4)
        self._engine.tokens += count
        text = json.dumps({"id": user, "n": count, "of": count, "content": pad * count})
        head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(text)}\r\n\r\n".encode()
        if self._orders.answers in ("reset", "malformed"):
            if count % 3:  # otherwise before the first byte, so that the request may be retried
                self._transport.write(head + text[: len(text) // 2].encode())
                await asyncio.sleep(0.02)
            self._reset()
            return
        self._transport.write(head + text.encode())

    def _reset(self) -> None:
        if not self._transport.is_closing():
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._transport.abort()

    def _reply(self, status: str, media_type: str, body: str, fields: str = "") -> None:
        head = f"HTTP/1.1 {status}\r\ncontent-type: {media_type}\r\ncontent-length: {len(body)}\r\n{fields}\r\n"
        self._transport.write(f"{head}{body}".encode())


def _begun(asked: dict[str, Any], pad: str) -> int:
    """How many events the answer has that the request asks to continue; 0 for a new answer."""
    if not asked.get("continue_final_message"):
        return 0
    return len(asked["messages"][-1]["content"]) // len(pad)


def _event(user: str, delta: dict[str, str], finish: str | None, **members: int) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    head = {"id": user, "object": "chat.completion.chunk", "created": 1, "model": "soak"}
    return f"data: {json.dumps({**head, 'choices': [choice], **members})}\n\n"


def _chunk(text: str) -> bytes:
    return f"{len(text):x}\r\n{text}\r\n".encode()


class Control:
    """Reads orders from standard input and reports the state."""

    def __init__(self, engine: Engine, port: int) -> None:
        self._engine = engine
        self._port = port
        self._server: asyncio.Server | None = None

    async def run(self) -> None:
        """Run until standard input ends."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        await self._listen()
        self._report_state()
        while line := await reader.readline():
            for name, value in json.loads(line).items():
                setattr(self._engine.orders, name, value)
            await self._listen()
            self._report_state()

    async def _listen(self) -> None:
        if self._engine.orders.listens and self._server is None:
            loop = asyncio.get_running_loop()
            self._server = await loop.create_server(lambda: Connection(self._engine), "127.0.0.1", self._port)
        elif not self._engine.orders.listens and self._server is not None:
            self._server.close()  # open connections stay open
            self._server = None

    def _report_state(self) -> None:
        state: dict[str, Any] = {"running": self._engine.running, "orders": asdict(self._engine.orders)}
        sys.stdout.write(json.dumps(state) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    uvloop.run(Control(Engine(sys.argv[2]), int(sys.argv[1])).run())
