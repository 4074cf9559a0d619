"""Connections without sockets: bytes go in as exactly the reads that a test makes of them, and time passes at once.

What asyncio and uvloop promise a protocol is kept: no data while paused or after the end, ``pause_writing`` above the
buffer's bound, ``connection_lost`` once and never from within a call of the protocol's own.
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
from inference_engine_proxy_server.tasks.deadlines import Deadlines
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

_MOST_TURNS = 50_000  # of the loop, for something that must come; far more than it takes


class HurryingLoop(asyncio.SelectorEventLoop):
    """An event loop that waits for nothing: when only time could bring something, that time has passed.

    Waiting for what no timer brings is an error: it would be for ever.

    Attributes:
        failures: what callbacks raised.
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
    """What a connection may do with its socket: be asked whether something came, and end in a reset."""

    def __init__(self, transport: MemoryTransport) -> None:
        self._transport = transport

    def fileno(self) -> int:
        return _silent.fileno()

    def setsockopt(self, level: int, option: int, value: bytes) -> None:
        del level, value
        self._transport.resets = option == socket.SO_LINGER


_silent, _never_used = socket.socketpair()


class MemoryTransport(asyncio.Transport):
    """One connection, with the test at its other end.

    Args:
        protocol: what the connection is of.
        high_water_bytes: how much may wait unsent before the protocol is paused; ``None``: what the protocol says.

    Attributes:
        sent: what the protocol wrote and the other end has taken.
        takes_all: the other end takes everything at once; else only what :meth:`take` says.
        paused: the protocol reads nothing at the moment.
        half_closed: the protocol's own half is closed.
        resets: its close is a reset.
        lost: it is over for both.
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

    # --- the other end

    async def receive(self, block: bytes) -> None:
        """Let the protocol read ``block`` once it reads at all; nothing if it is closing."""
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
        """Send no more (FIN)."""
        if not self._is_closing and not self._protocol.eof_received():
            self.close()

    def take(self, size: int) -> None:
        """Take ``size`` bytes of what is unsent."""
        self.sent += self._unsent[:size]
        del self._unsent[:size]
        if self._writing_paused and len(self._unsent) <= self._high_water_bytes // 4:
            self._writing_paused = False
            self._protocol.resume_writing()
        if self._is_closing and not self._unsent:
            self._lose()

    # --- the protocol's end

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
    """A client's connection, whose requests ``handle`` answers.

    Attributes:
        transport: with the client at its other end.
        observed: the exchanges that are over.
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
            handle,
            self.observed.append,
        )
        self.transport = MemoryTransport(ClientConnection(context, set(), self._tasks), high_water_bytes)

    async def settle(self) -> None:
        """Let everything happen that happens by itself, with a client that takes all of it.

        Raises:
            AssertionError: an exchange does not come to its end.
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
        """Let deadlines come."""
        await _pass_time(self._deadlines, seconds)


class MemoryBackend:
    """A connection to a backend.

    Attributes:
        transport: with the backend at its other end.
        connection: ours, to ask on.
    """

    def __init__(self, memory: HeadMemory[ReplyHead] | None = None) -> None:
        self._deadlines = Deadlines(tick_seconds=5.0, clock=asyncio.get_running_loop().time)
        self.connection = BackendConnection(self._deadlines, memory or HeadMemory[ReplyHead](), 30.0, 30.0)
        self.transport = MemoryTransport(self.connection)

    async def reply(
        self, reads: Sequence[bytes], sink: ReplySink, *, is_head: bool = False, ends: bool = True
    ) -> ProxyError | None:
        """Ask, and let the backend answer with ``reads``, and close after them if it ``ends``.

        Returns:
            What the request failed with; ``None``: the reply is complete, or is not over yet.
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
        """Let deadlines come."""
        await _pass_time(self._deadlines, seconds)


async def _pass_time(deadlines: Deadlines, seconds: float) -> None:
    watch = asyncio.get_running_loop().create_task(deadlines.run())
    await asyncio.sleep(seconds)
    watch.cancel()
    await asyncio.wait([watch])


async def turns(count: int) -> None:
    """Let the event loop turn ``count`` times."""
    for _ in range(count):
        await asyncio.sleep(0)


def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """The result of ``coroutine`` on a :class:`HurryingLoop`, none of whose callbacks may fail."""
    loop = HurryingLoop()
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        result = runner.run(coroutine)
    assert not loop.failures, loop.failures
    return result
