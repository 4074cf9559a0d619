"""A client's connection, as an exchange sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["ClientSide"]


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
