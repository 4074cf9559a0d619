"""A fake vLLM server that misbehaves on command: ``engine.py PORT NUMBER``.

Each line on standard input is a JSON object with the ``Orders`` to change; the reply is one line of JSON, the state.
The engine exits when standard input closes, so that a killed benchmark leaves no engine behind.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any, cast

import uvloop

_FAST_FAILURE_SECONDS = 0.001  # faster than any real answer, so the broken engine looks like the least loaded one


@dataclass(slots=True)
class Orders:
    """The engine's behaviour.

    Attributes:
        answer_seconds: time until the answer to a request without streaming.
        token_seconds: time between two events of a stream.
        failing: answer every request for a model with 503; health checks still pass.
        foreign: number of running requests to report that did not come through the proxy.
    """

    answer_seconds: float = 0.1
    token_seconds: float = 0.05
    tokens: int = 100
    failing: bool = False
    foreign: int = 0


@dataclass(slots=True)
class Engine:
    number: int
    orders: Orders = field(default_factory=Orders)
    arrivals: list[float] = field(default_factory=list)  # of requests for a model, by the clock all processes share
    plain: int = 0  # running
    streams: int = 0  # running

    def state(self) -> dict[str, Any]:
        return {"arrivals": self.arrivals, "plain": self.plain, "streams": self.streams}

    def page(self, path: bytes) -> tuple[str, str, str]:
        """Status, media type and body of the reply to a proxy's poll."""
        if path == b"/health":
            return "200 OK", "text/plain", ""
        if path == b"/v1/models":
            model = {"id": "m", "object": "model", "created": 0, "owned_by": "vllm", "root": "m", "max_model_len": 8192}
            return "200 OK", "application/json", json.dumps({"object": "list", "data": [model]})
        if path == b"/version":
            return "200 OK", "application/json", '{"version":"0.11.0"}'
        if path == b"/metrics":
            return "200 OK", "text/plain; version=0.0.4", self._metrics()
        return "404 Not Found", "application/json", '{"detail":"Not Found"}'

    def _metrics(self) -> str:
        running = self.plain + self.streams + self.orders.foreign
        samples = [("num_requests_running", "gauge", running), ("num_requests_waiting", "gauge", 0)]
        samples += [("kv_cache_usage_perc", "gauge", 0)]
        samples += [("prompt_tokens_total", "counter", 10 * len(self.arrivals))]
        samples += [("generation_tokens_total", "counter", 10 * len(self.arrivals))]
        lines = [
            f'# TYPE vllm:{name} {kind}\nvllm:{name}{{engine="0",model_name="m"}} {float(value)}\n'
            for name, kind, value in samples
        ]
        return "".join(lines)


class Connection(asyncio.Protocol):
    """Handles one request after the other; the next one is read when the previous one has been answered."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._loop = asyncio.get_running_loop()
        self._buffer = b""
        self._timer: asyncio.TimerHandle | None = None  # of the request that is running
        self._stream = False
        self._tokens_left = 0
        self._close = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if self._timer is not None:
            self._end()  # as vLLM does: the client has left, so the request is aborted

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._read_request()

    def _read_request(self) -> None:
        head, separator, rest = self._buffer.partition(b"\r\n\r\n")
        if self._timer is not None or not separator:
            return
        request_line, _, fields = head.lower().partition(b"\r\n")
        _, _, length = fields.partition(b"content-length:")
        length_bytes = int(length.split(b"\r\n", 1)[0]) if length else 0
        if len(rest) < length_bytes:
            return
        body, self._buffer = rest[:length_bytes], rest[length_bytes:]
        self._close = request_line.endswith(b"http/1.0") or b"connection: close" in fields
        method, path, *_ = request_line.split(b" ")
        if method == b"post" and path.startswith(b"/v1/"):
            self._begin(b'"stream":true' in body.replace(b" ", b""), said=body.count(b" engine"))
        else:
            self._answer(*self._engine.page(path.partition(b"?")[0]))

    def _begin(self, stream: bool, said: int) -> None:
        """Answer a request; ``said``: tokens of the answer that its last message already has, as for vLLM."""
        engine, orders = self._engine, self._engine.orders
        engine.arrivals.append(time.monotonic())
        self._stream = stream
        if stream:
            engine.streams += 1
        else:
            engine.plain += 1
        if orders.failing:
            self._timer = self._loop.call_later(_FAST_FAILURE_SECONDS, self._fail)
        elif stream:
            self._tokens_left = orders.tokens - said
            head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            self._transport.write(head.encode())
            self._timer = self._loop.call_later(orders.token_seconds, self._next_token)
        else:
            self._timer = self._loop.call_later(orders.answer_seconds, self._succeed)

    def _end(self) -> None:
        cast(asyncio.TimerHandle, self._timer).cancel()
        self._timer = None
        if self._stream:
            self._engine.streams -= 1
        else:
            self._engine.plain -= 1

    def _fail(self) -> None:
        self._end()
        self._answer("503 Service Unavailable", "application/json", '{"error":{"message":"broken","code":503}}')

    def _succeed(self) -> None:
        self._end()
        choice = {"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        reply = {"id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": "m"}
        self._answer("200 OK", "application/json", json.dumps(reply | {"choices": [choice], "usage": usage}))

    def _answer(self, status: str, media_type: str, body: str) -> None:
        fields = f"Content-Type: {media_type}\r\nContent-Length: {len(body)}\r\n"
        if self._close:
            fields += "Connection: close\r\n"
        self._transport.write(f"HTTP/1.1 {status}\r\n{fields}\r\n{body}".encode())
        self._after_answer()

    def _next_token(self) -> None:
        self._tokens_left -= 1
        last = self._tokens_left == 0
        # The token names its engine, so that a client can identify the engine whatever the proxy does to other fields.
        delta = {"role": "assistant", "content": f" engine{self._engine.number}"}
        choice = {"index": 0, "delta": delta, "finish_reason": "length" if last else None}
        event = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": "m", "choices": [choice]}
        text = f"data: {json.dumps(event)}\n\n" + ("data: [DONE]\n\n" if last else "")
        self._transport.write(f"{len(text):x}\r\n{text}\r\n".encode())
        if last:
            self._transport.write(b"0\r\n\r\n")
            self._end()
            self._after_answer()
        else:
            self._timer = self._loop.call_later(self._engine.orders.token_seconds, self._next_token)

    def _after_answer(self) -> None:
        if self._close:
            self._transport.close()
        elif self._buffer:
            self._read_request()


class Control(asyncio.Protocol):
    """Reads orders from standard input, and replies with the state."""

    def __init__(self, engine: Engine, ended: asyncio.Event) -> None:
        self._engine = engine
        self._ended = ended
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            for name, value in json.loads(line).items():
                setattr(self._engine.orders, name, value)
            print(json.dumps(self._engine.state()), flush=True)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._ended.set()


async def main(port: int, number: int) -> None:
    engine = Engine(number)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(engine), "127.0.0.1", port, backlog=4096)
    await loop.connect_read_pipe(lambda: Control(engine, ended), sys.stdin)
    print(json.dumps(engine.state()), flush=True)  # signals that the engine is listening
    await ended.wait()
    server.close()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2])))
