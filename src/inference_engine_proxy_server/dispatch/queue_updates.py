"""Tells a stream's reader, while its request waits, which it is in line: by comments, which readers of events skip.

They commit the reply's status, 200, before any engine has answered. So what goes wrong later can only be told by an
event in the stream, and the reply cannot name its backend. That is why they must be asked for.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from inference_engine_proxy_server.dispatch.leases import Lease
from inference_engine_proxy_server.dispatch.request_queue import QueuedRequest, RequestQueue
from inference_engine_proxy_server.requests.prompt import Prompt
from inference_engine_proxy_server.wire.exchange import Exchange

__all__ = ["QueueUpdates"]

_EVERY_SECONDS = 1.0
_ASKED_FOR = re.compile(rb"(?:^|\n)x-queue-updates:[ \t]*(?:true|1|yes|on)[ \t]*\r\n", re.IGNORECASE)


class _Streaming(msgspec.Struct):
    stream: bool = False


_decoder = msgspec.json.Decoder(_Streaming)


class QueueUpdates:
    """Sends them.

    Args:
        line: where requests wait.
        to_all: also to streams that do not ask for them.
    """

    def __init__(self, line: RequestQueue[Lease], *, to_all: bool) -> None:
        self._line = line
        self._to_all = to_all

    @asynccontextmanager
    async def during(
        self, exchange: Exchange, waiter: QueuedRequest[Lease], prompt: Prompt | None
    ) -> AsyncIterator[None]:
        """Send them to ``exchange`` while ``waiter`` waits in it, if they are wanted.

        Args:
            prompt: of its body; ``None``: nobody has read it.
        """
        if not self._are_wanted(exchange, prompt):
            yield
            return
        task = asyncio.get_running_loop().create_task(self._send(exchange, waiter))
        try:
            yield
        finally:
            task.cancel()  # and not awaited: that would swallow the client's leaving, or lose the place

    def _are_wanted(self, exchange: Exchange, prompt: Prompt | None) -> bool:
        if not self._to_all and not _ASKED_FOR.search(exchange.head.passed_on):
            return False
        if prompt is not None:
            return prompt.is_streamed
        try:
            return _decoder.decode(exchange.body).stream
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False

    async def _send(self, exchange: Exchange, waiter: QueuedRequest[Lease]) -> None:
        await asyncio.sleep(0)  # it joins the line first
        while waiter.waits and not exchange.done:
            position = self._line.position(waiter)
            seconds = self._line.seconds_for(position)
            eta = b"" if seconds is None else b" eta=%ds" % max(1, round(seconds))
            exchange.tell(b": queued position=%d%b\n\n" % (position, eta))
            await asyncio.sleep(_EVERY_SECONDS)
