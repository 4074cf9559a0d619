"""A client's connection, as the exchange that it carries sees it, and who takes over from HTTP on it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["ClientReceiver", "ClientSide"]


class ClientReceiver(Protocol):
    """Receives what a client sends when its connection no longer speaks HTTP."""

    def take(self, data: bytes) -> None:
        """Take bytes of the client."""

    def end_client(self) -> bool:
        """The client sends no more. Returns whether its connection can stay open for the bytes it still receives."""


class ClientSide(Protocol):
    """The connection that an exchange belongs to."""

    clock: Callable[[], float]

    @property
    def is_behind(self) -> bool:
        """Whether the client has yet to read much of what was sent."""

    def write(self, block: bytes) -> None:
        """Send ``block`` to the client."""

    def comment_sent(self) -> None:
        """A comment was sent ahead of the reply: the client's wait begins anew."""

    def exchange_done(self, exchange: Any) -> None:
        """The reply is complete or, if its outcome is ``BROKEN``, never will be; the client must see the difference."""

    def switch_protocols(self, receiver: ClientReceiver) -> tuple[asyncio.Transport, bytes]:
        """Pass all further bytes of the client to ``receiver``, which are no HTTP.

        Returns:
            The transport of the connection, and the bytes that have arrived ahead of the switch.
        """
