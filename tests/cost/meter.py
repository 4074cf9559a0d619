"""Counts the Python instructions and calls of the proxy for a request and for a streamed event.

Only this thread is counted, in which the proxy runs; its engines and its client have separate threads. The counts do
not depend on the load of the machine.
"""

from __future__ import annotations

import asyncio
import json
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any
from unittest.mock import patch

import uvloop

from inference_engine_proxy_server.telemetry import access_log, finished_requests
from support.live_proxy import live_proxy

__all__ = ["Costs", "Count", "measure"]

_TIMES = 32  # requests in a batch, and those that are counted together; a batch for comparison has twice as many
_EVENTS = 256  # in a batch; many, because a stream that can be resumed reads about 50 events at a time
_BATCHES = 8  # the minimum excludes periodic work
_MODELS = json.dumps({"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "somebody"}]}).encode()
_ANSWER = b'{"object":"chat.completion","choices":[{"index":0,"message":{"content":"' + b"x" * 400 + b'"}}]}'
_EVENT = b'data: {"choices":[{"index":0,"delta":{"content":" token"},"finish_reason":null}]}\n\n'
_CHUNK = b"%x\r\n%b\r\n" % (len(_EVENT), _EVENT)
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_FIELDS = b"".join(b"x-stainless-%d: some value\r\n" % number for number in range(8))


@dataclass(frozen=True, slots=True)
class Count:
    """The cost of one step.

    Attributes:
        instructions: bytecode instructions; they differ between versions of Python.
        calls: function calls, in Python and C.
    """

    instructions: int
    calls: int


@dataclass(frozen=True, slots=True)
class Costs:
    """The costs of a request with a whole answer, and of one event of a stream."""

    request: Count
    event: Count


class _Meter:
    """Counts the work of the thread that starts it, without the meter's own part."""

    def __init__(self) -> None:
        self._instructions = self._calls = 0

    def start(self) -> None:
        self._instructions = self._calls = 0
        self._others = sys.gettrace(), sys.getprofile()  # for example those of coverage
        sys.setprofile(self._on_call)
        sys.settrace(self._on_frame)

    def stop(self) -> Count:
        tracer, profiler = self._others
        sys.settrace(tracer)
        sys.setprofile(profiler)
        return Count(self._instructions, self._calls)

    def _on_call(self, frame: FrameType, event: str, argument: Any) -> None:
        del frame, argument
        self._calls += event in ("call", "c_call")

    def _on_frame(self, frame: FrameType, event: str, argument: Any) -> Any:
        del event, argument
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._on_instruction

    def _on_instruction(self, frame: FrameType, event: str, argument: Any) -> Any:
        del frame, argument
        self._instructions += event == "opcode"
        return self._on_instruction


class _Engine(socketserver.ThreadingTCPServer):
    """Answers at once; a stream continues with an event whenever :attr:`may_go_on` is released."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Conversation)
        self.may_go_on = threading.Semaphore(0)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Conversation(socketserver.StreamRequestHandler):
    disable_nagle_algorithm = True

    def handle(self) -> None:
        while head := self._head():
            if head.startswith(b"GET"):
                self._answer(*((b"200 OK", _MODELS) if b"/v1/models" in head else (b"404 Not Found", b"{}")))
                continue
            body = self.rfile.read(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
            if b'"stream":true' in body:
                self._stream()
            self._answer(b"200 OK", _ANSWER)

    def _head(self) -> bytes:
        lines = b""
        while not lines.endswith(b"\r\n\r\n"):
            line = self.rfile.readline()
            if not line:
                return b""
            lines += line
        return lines

    def _answer(self, status: bytes, body: bytes) -> None:
        fields = b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body)
        self.wfile.write(b"HTTP/1.1 %b\r\n%b\r\n%b" % (status, fields, body))

    def _stream(self) -> None:
        assert isinstance(self.server, _Engine)
        self.wfile.write(_STREAM_HEAD + _CHUNK)
        try:
            while self.server.may_go_on.acquire():
                self.wfile.write(_CHUNK)
        except OSError:
            return  # its client has disconnected


class _Client:
    """Performs steps sequentially on one connection."""

    def __init__(self, url: str, body_bytes: int, engines: list[_Engine]) -> None:
        host, _, port = url.removeprefix("http://").rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._replies = self._socket.makefile("rb")
        self._engines = engines
        self._content = "x" * body_bytes

    def ask(self) -> None:
        self._send(stream=False)
        head = self._head()
        self._replies.read(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))

    def open_stream(self) -> None:
        self._send(stream=True)
        self._head()
        self._replies.read(len(_CHUNK))  # the first event comes with the header section

    def next_event(self) -> None:
        for engine in self._engines:
            engine.may_go_on.release()
        self._replies.read(len(_CHUNK))

    def close(self) -> None:
        self._socket.close()

    def _send(self, *, stream: bool) -> None:
        asked = {"model": "m", "messages": [{"role": "user", "content": self._content}], "stream": stream}
        body = json.dumps(asked, separators=(",", ":")).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\n%bcontent-length: %d\r\n\r\n" % (_FIELDS, len(body))
        self._socket.sendall(head + body)

    def _head(self) -> bytes:
        return b"".join(iter(self._replies.readline, b"\r\n"))


def measure(body_bytes: int = 1000, backends: int = 2, **settings: Any) -> Costs:
    """Measure the costs with requests of about ``body_bytes``, this number of ``backends`` and these ``settings``."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(finished_requests, "_BATCH", _TIMES))
        stack.enter_context(patch.object(access_log, "_FLUSH_SECONDS", 3600))  # only whole batches
        engines = [stack.enter_context(_running(_Engine())) for _ in range(backends)]
        return uvloop.run(_measured(engines, body_bytes, settings))


@contextmanager
def _running(engine: _Engine) -> Iterator[_Engine]:
    thread = threading.Thread(target=engine.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield engine
    finally:
        engine.shutdown()
        thread.join()
        engine.server_close()


async def _measured(engines: list[_Engine], body_bytes: int, settings: Mapping[str, Any]) -> Costs:
    loop = asyncio.get_running_loop()
    meter = _Meter()

    def counted(act: Callable[[], None], times: int) -> Count:
        """The work of this thread while a client thread repeated ``act``."""
        done: list[Count] = []
        began, ended = threading.Event(), threading.Event()

        def begin() -> None:
            began.set()
            meter.start()

        def end() -> None:
            done.append(meter.stop())
            ended.set()

        loop.call_soon_threadsafe(begin)
        began.wait()
        for _ in range(times):
            act()
        loop.call_soon_threadsafe(end)
        ended.wait()
        return done[0]

    def cost(act: Callable[[], None], times: int) -> Count:
        counts = [(counted(act, times), counted(act, 2 * times)) for _ in range(_BATCHES)]
        return Count(
            (min(two.instructions for _, two in counts) - min(one.instructions for one, _ in counts)) // times,
            (min(two.calls for _, two in counts) - min(one.calls for one, _ in counts)) // times,
        )

    def costs(url: str) -> Costs:
        client = _Client(url, body_bytes, engines)
        try:
            for _ in range(4 * len(engines)):  # opens the connections to the engines
                client.ask()
            request = cost(client.ask, _TIMES)
            client.open_stream()
            return Costs(request, cost(client.next_event, _EVENTS))
        finally:
            client.close()

    async with live_proxy(*(engine.url for engine in engines), **settings) as proxy:
        return await asyncio.to_thread(costs, proxy.url)
