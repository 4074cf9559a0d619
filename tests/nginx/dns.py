"""A DNS server with one IPv4 address for every name (RFC 1035)."""

from __future__ import annotations

import asyncio
import ipaddress
from types import TracebackType
from typing import Self, cast

__all__ = ["DnsServer"]

_LONG_SECONDS = 600  # as Docker's answers
_RESPONSE_FLAGS = b"\x81\x80"
_POINTER_TO_NAME = b"\xc0\x0c"
_TYPE_A_CLASS_IN = b"\0\x01\0\x01"


class DnsServer(asyncio.DatagramProtocol):
    """The server.

    Attributes:
        address: its answer to all questions.
        port: where it listens on 127.0.0.1.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.port = 0
        self._transport: asyncio.DatagramTransport

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, ("127.0.0.1", 0))
        self.port = self._transport.get_extra_info("sockname")[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._transport.close()

    def datagram_received(self, data: bytes, addr: object) -> None:
        """Answer a question."""
        question = data[12 : data.index(0, 12) + 5]
        address = ipaddress.IPv4Address(self.address).packed
        record = _POINTER_TO_NAME + _TYPE_A_CLASS_IN + _LONG_SECONDS.to_bytes(4) + len(address).to_bytes(2) + address
        counts = b"\0\x01\0\x01\0\0\0\0"
        reply = data[:2] + _RESPONSE_FLAGS + counts + question + record
        self._transport.sendto(reply, cast(tuple[str, int], addr))
