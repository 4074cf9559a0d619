"""Connections without sockets: tests determine the exact reads, and time passes at once.

They keep the guarantees of asyncio and uvloop for protocols: no data while paused or after the end, ``pause_writing``
above the buffer limit, ``connection_lost`` once and never from within a call of the protocol.
"""

from __future__ import annotations

import asyncio
import itertools
import selectors
import socket
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

from inference_engine_proxy_server.errors import ProxyError
from inference_engine_proxy_server.requests.destinations import Destination
from inference_engine_proxy_server.tasks.deadlines import NEVER, Deadlines
from inference_engine_proxy_server.tasks.light_task import LightTask
from inference_engine_proxy_server.wire.backend_connection import BackendConnection
from inference_engine_proxy_server.wire.client_connection import ClientConnection
from inference_engine_proxy_server.wire.client_context import ClientContext, ClientLimits
from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.forwarding import Forwarding
from inference_engine_proxy_server.wire.head_memory import HeadMemory
from inference_engine_proxy_server.wire.load import Load
from inference_engine_proxy_server.wire.reply_head import ReplyHead
from inference_engine_proxy_server.wire.reply_sink import ReplySink
from support.fakes.front import Handler, shed

__all__ = ["HurryingLoop", "MemoryBackend", "MemoryClient", "MemoryTransport", "run", "turns"]

Result = TypeVar("Result")

_MOST_TURNS = 50_000  # loop iterations for expected events; far more than needed


class HurryingLoop(asyncio.SelectorEventLoop):
    """An event loop that never waits: when only a timer is left, its time has come.

    Waiting without a timer is an error, because it would never end.

    Attributes:
        failures: exceptions of callbacks.
    """

    def __init__(self) -> None:
        self._passed = 0.0
        self.failures: list[BaseException | str] = []
        super().__init__(_Hurry(self._let_pass))

    def time(self) -> float:
        return self._passed

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.failures.append(context.get("exception") or str(context))

    def _let_pass(self, seconds: float) -> None:
        self._passed += seconds


class _Hurry(selectors.SelectSelector):
    def __init__(self, let_pass: Callable[[float], None]) -> None:
        super().__init__()
        self._let_pass = let_pass

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise AssertionError("everything waits, and nothing will come")
        self._let_pass(max(timeout, 0.0))
        return super().select(0)


class _Descriptor:
    """The socket of a connection: it can be polled for input, and closed with a reset."""

    def __init__(self, transport: MemoryTransport) -> None:
        self._transport = transport

    def fileno(self) -> int:
        return _silent.fileno()

    def setsockopt(self, level: int, option: int, value: bytes) -> None:
        del level, value
        self._transport.resets = option == socket.SO_LINGER


_silent, _never_used = socket.socketpair()


class MemoryTransport(asyncio.Transport):
    """One connection with the test as its peer.

    Args:
        protocol: the protocol under test.
        high_water_bytes: unsent bytes above which the protocol is paused; ``None`` for the protocol's own limit.

    Attributes:
        sent: bytes that the protocol wrote and the peer has read.
        takes_all: whether the peer reads everything at once; otherwise only by :meth:`take`.
        paused: whether the protocol has paused reading.
        half_closed: whether the protocol's sending half is closed.
        resets: whether it closes with a reset.
        lost: whether the connection has ended for both sides.
    """

    def __init__(self, protocol: asyncio.Protocol, high_water_bytes: int | None = None) -> None:
        super().__init__()
        self._protocol = protocol
        self._fixed_high_water = high_water_bytes is not None
        self._high_water_bytes = high_water_bytes or 65536
        self._unsent = bytearray()
        self._is_closing = self._writing_paused = False
        self.sent = bytearray()
        self.takes_all = True
        self.paused = self.half_closed = self.resets = self.lost = False
        protocol.connection_made(self)

    # --- the peer

    async def receive(self, block: bytes) -> None:
        """Let the protocol read ``block`` when it is not paused; no effect if it is closing."""
        for _ in range(_MOST_TURNS):
            if self._is_closing:
                return
            if not self.paused:
                self._protocol.data_received(block)
                return
            self.take(len(self._unsent))
            await asyncio.sleep(0)
        raise AssertionError("it is paused and never reads again")

    def finish(self) -> None:
        """Close the sending half of the peer (FIN)."""
        if not self._is_closing and not self._protocol.eof_received():
            self.close()

    def take(self, size: int) -> None:
        """Read ``size`` of the unsent bytes."""
        self.sent += self._unsent[:size]
        del self._unsent[:size]
        if self._writing_paused and len(self._unsent) <= self._high_water_bytes // 4:
            self._writing_paused = False
            self._protocol.resume_writing()
        if self._is_closing and not self._unsent:
            self._lose()

    # --- the protocol's side

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("192.0.2.1", 4711), "socket": _Descriptor(self)}.get(name, default)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        del low
        if high is not None and not self._fixed_high_water:
            self._high_water_bytes = high

    def get_write_buffer_size(self) -> int:
        return len(self._unsent)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.half_closed, "written after the end"
        if self.lost or (self._is_closing and not self._unsent):
            return
        if self.takes_all and not self._unsent:
            self.sent += data
            return
        self._unsent += data
        if len(self._unsent) > self._high_water_bytes and not self._writing_paused:
            self._writing_paused = True
            self._protocol.pause_writing()

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.half_closed = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            if not self._unsent:
                self._lose()

    def abort(self) -> None:
        self._is_closing = True
        self._unsent.clear()
        self._lose()

    def _lose(self) -> None:
        if not self.lost:
            self.lost = True
            asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)


class MemoryClient:
    """A client connection whose requests ``handle`` answers.

    Attributes:
        transport: with the client as its peer.
        observed: the finished exchanges.
    """

    def __init__(self, handle: Handler, limits: ClientLimits, high_water_bytes: int | None = None) -> None:
        self.observed: list[Exchange] = []
        self._tasks: set[LightTask] = set()
        self._deadlines = Deadlines(tick_seconds=5.0, clock=asyncio.get_running_loop().time)
        ids: Iterator[str] = (f"new-{number}" for number in itertools.count(1))
        context = ClientContext(
            limits,
            self._deadlines,
            Load(self._deadlines.clock),
            Forwarding((), name="this-proxy", is_tls=False),
            ids,
            Exchange,
            lambda _: Destination.WORK,
            shed,
            lambda _: None,
            NEVER,
            lambda _: None,
            handle,
            self.observed.append,
        )
        self.transport = MemoryTransport(ClientConnection(context, set(), self._tasks), high_water_bytes)

    async def settle(self) -> None:
        """Run until nothing is left to do, with a client that reads everything.

        Raises:
            AssertionError: an exchange does not end.
        """
        for _ in range(_MOST_TURNS):
            self.transport.takes_all = True
            self.transport.take(self.transport.get_write_buffer_size())
            answered = len(self.transport.sent)
            await turns(3)
            if not self._tasks and len(self.transport.sent) == answered:
                return
        raise AssertionError("a request is never answered")

    async def pass_time(self, seconds: float) -> None:
        """Let all deadlines pass."""
        await _pass_time(self._deadlines, seconds)


class MemoryBackend:
    """A connection to a backend.

    Attributes:
        transport: with the backend as its peer.
        connection: the proxy's connection, for requests.
    """

    def __init__(self, memory: HeadMemory[ReplyHead] | None = None) -> None:
        self._deadlines = Deadlines(tick_seconds=5.0, clock=asyncio.get_running_loop().time)
        self.connection = BackendConnection(self._deadlines, memory or HeadMemory[ReplyHead](), 30.0, 30.0)
        self.transport = MemoryTransport(self.connection)

    async def reply(
        self, reads: Sequence[bytes], sink: ReplySink, *, is_head: bool = False, ends: bool = True
    ) -> ProxyError | None:
        """Send a request and let the backend answer with ``reads``, then close if it ``ends``.

        Returns:
            The error of the request; ``None`` if the reply is complete or not finished yet.
        """
        result = self.connection.request([b"GET / HTTP/1.1\r\n\r\n"], sink, is_head=is_head)
        for block in reads:
            await self.transport.receive(block)
            await asyncio.sleep(0)
        if ends:
            self.transport.finish()
        await turns(3)
        if result.done():
            try:
                result.result()
            except ProxyError as error:
                return error
        return None

    async def pass_time(self, seconds: float) -> None:
        """Let all deadlines pass."""
        await _pass_time(self._deadlines, seconds)


async def _pass_time(deadlines: Deadlines, seconds: float) -> None:
    watch = asyncio.get_running_loop().create_task(deadlines.run())
    await asyncio.sleep(seconds)
    watch.cancel()
    await asyncio.wait([watch])


async def turns(count: int) -> None:
    """Let the event loop iterate ``count`` times."""
    for _ in range(count):
        await asyncio.sleep(0)


def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run ``coroutine`` on a :class:`HurryingLoop` and return its result; no callback may fail."""
    loop = HurryingLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        result = runner.run(coroutine)
    assert not loop.failures, loop.failures
    return result
