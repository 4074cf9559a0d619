"""A DNS server that answers as a test specifies, over real UDP sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

__all__ = ["DnsServer"]


class DnsServer(asyncio.DatagramProtocol):
    """The server.

    Attributes:
        records: of each name and type, as in a zone file: ``{("engines.test.", "A"): ["127.0.0.1"]}``.
        extra: names and types whose records it adds to answers about other names.
        ttl: of records, in seconds. ttls: of the records of a name, if it has others.
        rcode: of all answers; ``None``: as the records say.
        is_silent: it answers nothing.
        questions: the names and types that it was asked for, in order.
        port: where it listens on 127.0.0.1.
    """

    def __init__(self, ttl: int = 1) -> None:
        self.records: dict[tuple[str, str], Sequence[str]] = {}
        self.extra: list[tuple[str, str]] = []
        self.ttl = ttl
        self.ttls: dict[str, int] = {}
        self.rcode: dns.rcode.Rcode | None = None
        self.is_silent = False
        self.questions: list[tuple[str, str]] = []
        self.port = 0
        self._transport: asyncio.DatagramTransport

    @property
    def address(self) -> str:
        """As in the query of a lookup's URL."""
        return f"127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._transport, _ = await loop.create_datagram_endpoint(lambda: self, ("127.0.0.1", self.port))
        self.port = self._transport.get_extra_info("sockname")[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._transport.close()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Answer a question."""
        query = dns.message.from_wire(data)
        name, rdtype = query.question[0].name.to_text().lower(), dns.rdatatype.to_text(query.question[0].rdtype)
        self.questions.append((name, rdtype))
        if self.is_silent:
            return
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        if self.rcode is not None:
            response.set_rcode(self.rcode)
            self._transport.sendto(response.to_wire(), addr)
            return
        if alias := self.records.get((name, "CNAME")):
            response.answer.append(self._rrset(name, "CNAME", alias))
            [name] = alias
        if texts := self.records.get((name, rdtype)):
            response.answer.append(self._rrset(name, rdtype, texts))
            response.additional += [self._rrset(*key, self.records[key]) for key in self.extra]
        elif name not in {known for known, _ in self.records}:
            response.set_rcode(dns.rcode.NXDOMAIN)
        self._transport.sendto(response.to_wire(), addr)

    def _rrset(self, name: str, rdtype: str, texts: Sequence[str]) -> dns.rrset.RRset:
        return dns.rrset.from_text_list(name, self.ttls.get(name, self.ttl), "IN", rdtype, texts)
