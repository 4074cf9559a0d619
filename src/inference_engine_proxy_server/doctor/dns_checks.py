"""The names of backends in DNS."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import urlsplit

from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.doctor.finding import Finding, Severity

__all__ = ["check_name", "resolved"]

_SLOW_SECONDS = 1.0  # a resolver whose first server is dead takes 5 s by default (resolv.conf(5))
_LISTED = 4  # addresses in a sentence
_ONE = "The proxy takes it for one backend, and uses one address"
_REMEDY = (
    "Write dns+ in front of the URL, so that each address is a backend of its own; or list each server by a name that "
    "only it has."
)

Resolve = Callable[[str], Sequence[str]]
"""The addresses of a host name; raises ``OSError`` if it has none."""


def resolved(host: str) -> Sequence[str]:
    """The addresses of a host name, by the resolver of the system. Raises ``OSError`` if it has none."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[4][0]) for address in found))


def check_name(
    config: BackendConfig, resolve: Resolve = resolved, clock: Callable[[], float] = time.monotonic
) -> Iterator[Finding]:
    """Findings about the host name of a backend, which is resolved twice. A name without address is found elsewhere."""
    host, subject = urlsplit(config.url).hostname or "", f"backend {config.name}"
    if _is_address(host):
        return
    began_at = clock()
    try:
        first = resolve(host)
        seconds = clock() - began_at
        second = resolve(host)
    except (OSError, UnicodeError):
        return
    if seconds > _SLOW_SECONDS:
        yield Finding(
            "dns_slow",
            Severity.WARNING,
            subject,
            f"The name {host} took {seconds:.1f} s to resolve, and connections to the backend may wait for that.",
            "Check the name servers in /etc/resolv.conf: usually the first one does not answer. Or write the address.",
        )
    if not set(first) & set(second):
        yield Finding(
            "dns_address_changes",
            Severity.WARNING,
            subject,
            f"The name {host} resolves to {_listed(first)}, and then to {_listed(second)}. {_ONE}.",
            _REMEDY,
        )
    elif _most_of_a_family({*first, *second}) > 1:
        yield Finding(
            "dns_several_addresses",
            Severity.WARNING,
            subject,
            f"The name {host} resolves to {_listed(first)}. {_ONE}.",
            _REMEDY,
        )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _most_of_a_family(addresses: set[str]) -> int:
    """An IPv4 and an IPv6 address are usually of one machine."""
    ipv6 = sum(":" in address for address in addresses)
    return max(ipv6, len(addresses) - ipv6)


def _listed(addresses: Sequence[str]) -> str:
    more = f" and {len(addresses) - _LISTED} more" if len(addresses) > _LISTED else ""
    return ", ".join(addresses[:_LISTED]) + more
