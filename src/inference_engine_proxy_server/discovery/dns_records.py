"""What the DNS says of a name: addresses, or SRV records with their addresses.

Sources: RFC 1035 (A), RFC 3596 (AAAA), RFC 2782 (SRV). dnspython is imported only when a name is looked up.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from inference_engine_proxy_server.config.lookups import Lookup, NameServer

if TYPE_CHECKING:
    from dns.asyncresolver import Resolver
    from dns.resolver import Answer

__all__ = ["DnsAnswer", "DnsFailure", "DnsRecord", "NothingFound", "look_up"]

_SECONDS = 4.0  # for one question, all attempts included

_SILENT = "the name server does not answer"
_IN_TROUBLE = "the name server reports an error"
_NO_SUCH_NAME = "the name does not exist"
_NO_ADDRESSES = "the name has no addresses"
_NO_SERVICE = "the name has no SRV records that lead to an address"


class DnsFailure(Exception):
    """There was no answer; the text says why."""


class NothingFound(Exception):
    """The answer is that there is nothing; the text says so."""


class DnsRecord(NamedTuple):
    """One server that was found.

    Attributes:
        address: IPv4 or IPv6.
        port: as an SRV record states it; ``None`` without one.
        target: the name that has the address, without a dot at its end.
        priority: of the SRV record; the lowest is to be used first.
        weight: of the SRV record, relative to others of its priority.
    """

    address: str
    port: int | None
    target: str
    priority: int = 0
    weight: int = 0


@dataclass(frozen=True, slots=True)
class DnsAnswer:
    """An answer.

    Attributes:
        records: sorted, because servers rotate them; at least one.
        ttl_seconds: for how long the answer may be used.
    """

    records: tuple[DnsRecord, ...]
    ttl_seconds: float


async def look_up(lookup: Lookup) -> DnsAnswer:
    """Ask the DNS.

    Raises:
        NothingFound: the name has no records.
        DnsFailure: nobody can tell.
    """
    import dns.exception
    import dns.resolver

    try:
        resolver = await _resolver(lookup.server)
        if lookup.kind == "srv":
            return await _services(resolver, lookup.name)
        return await _addresses(resolver, lookup.name)
    except dns.resolver.NXDOMAIN as error:
        raise NothingFound(_NO_SUCH_NAME) from error
    except dns.resolver.NoAnswer as error:
        raise NothingFound(_NO_SERVICE if lookup.kind == "srv" else _NO_ADDRESSES) from error
    except dns.resolver.LifetimeTimeout as error:
        raise DnsFailure(_SILENT) from error
    except dns.resolver.NoNameservers as error:
        raise DnsFailure(_IN_TROUBLE) from error
    except dns.resolver.NoResolverConfiguration as error:
        raise DnsFailure("the system has no name server: /etc/resolv.conf cannot be used") from error
    except dns.exception.DNSException as error:
        raise DnsFailure(f"the name server cannot be asked: {type(error).__name__}") from error
    except OSError as error:
        raise DnsFailure(f"the name server cannot be asked: {error.strerror or error}") from error


async def _resolver(server: NameServer | None) -> Resolver:
    """Made anew for each lookup, because the configuration of the system may change."""
    from dns.asyncresolver import Resolver

    resolver = Resolver(configure=server is None)
    resolver.lifetime = _SECONDS
    if server is not None:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(server.host, server.port, type=socket.SOCK_DGRAM)
        resolver.nameservers = list(dict.fromkeys(str(one[4][0]) for one in found))
        resolver.port = server.port
    return resolver


async def _addresses(resolver: Resolver, name: str) -> DnsAnswer:
    """The IPv4 addresses, or else the IPv6 addresses: a server with both must not become two backends.

    Raises what dnspython raises.
    """
    import dns.resolver

    try:
        answer = await resolver.resolve(name, "A", search=True)
    except dns.resolver.NoAnswer:
        answer = await resolver.resolve(name, "AAAA", search=True)
    target = name.rstrip(".")
    return DnsAnswer(tuple(sorted(DnsRecord(one.address, None, target) for one in answer)), _ttl_of(answer))


async def _services(resolver: Resolver, name: str) -> DnsAnswer:
    answer = await resolver.resolve(name, "SRV", search=True)
    told = _told_addresses(answer)
    ttl, records = _ttl_of(answer), set()
    for record in answer:
        target = record.target.to_text(omit_final_dot=True)
        addresses = told.get(target.lower())
        if addresses is None:
            addresses, target_ttl = await _addresses_of_target(resolver, record.target.to_text())
            ttl = min(ttl, target_ttl)
        for address in addresses:
            records.add(DnsRecord(address, record.port, target, record.priority, record.weight))
    if not records:
        raise NothingFound(_NO_SERVICE)
    return DnsAnswer(tuple(sorted(records)), ttl)


async def _addresses_of_target(resolver: Resolver, target: str) -> tuple[Sequence[str], float]:
    """The addresses of an SRV record's target; none if it has none, which must not hide the other targets."""
    import dns.resolver

    if target == ".":  # RFC 2782: the service is not available
        return (), float("inf")
    try:
        found = await _addresses(resolver, target)
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
        return (), 0.0
    return [record.address for record in found.records], found.ttl_seconds


def _told_addresses(answer: Answer) -> dict[str, Sequence[str]]:
    """The addresses that the server adds to its answer about a service, by target in lower case."""
    import dns.rdatatype

    told: dict[str, list[str]] = {}
    for rrset in answer.response.additional:
        if rrset.rdtype in (dns.rdatatype.A, dns.rdatatype.AAAA):
            told.setdefault(rrset.name.to_text(omit_final_dot=True).lower(), []).extend(one.address for one in rrset)
    return {target: _of_one_family(addresses) for target, addresses in told.items()}


def _of_one_family(addresses: Iterable[str]) -> Sequence[str]:
    families: dict[int, list[str]] = {4: [], 6: []}
    for address in addresses:
        families[ipaddress.ip_address(address).version].append(address)
    return families[4] or families[6]


def _ttl_of(answer: Answer) -> float:
    """The shortest life of the records, aliases on the way included."""
    return float(answer.chaining_result.minimum_ttl)
