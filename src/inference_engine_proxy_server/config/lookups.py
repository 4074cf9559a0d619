"""URLs that stand for several backends: a DNS name, with one for each of its records, or a type of services."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Literal

from inference_engine_proxy_server.config.service_types import as_service_url, is_service

__all__ = ["Lookup", "NameServer", "as_lookup_url", "is_lookup"]

_LOOKUP = re.compile(
    r"(dns|srv)\+(https?)://([\w.-]+)(?::(\d{1,5}))?((?:/[\w.~!$&'()*+;=:%-]*)*)(?:\?server=([^&]+))?",
    re.ASCII | re.IGNORECASE,
)
_SERVER = re.compile(r"([\w.-]+|\[[0-9a-f:.]+\])(?::(\d{1,5}))?", re.ASCII | re.IGNORECASE)
_DNS_PORT = 53
_EXAMPLES = {"dns": "dns+http://engines:8080", "srv": "srv+http://_engine._tcp.example.com"}


@dataclass(frozen=True, slots=True)
class NameServer:
    """A DNS server.

    Attributes:
        host: its address, or a name that the system resolves.
        port: for UDP and TCP.
    """

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Lookup:
    """Where backends are found in the DNS.

    Attributes:
        kind: "dns" for A and AAAA records, "srv" for SRV records.
        scheme: of the backends, "http" or "https".
        name: whose records are asked for.
        port: of the backends; ``None`` if the records state it.
        path: of the backends' base URLs; empty, or "/..." without a slash at its end.
        server: that is asked; ``None`` for those of the system.
    """

    kind: Literal["dns", "srv"]
    scheme: str
    name: str
    port: int | None
    path: str
    server: NameServer | None

    @classmethod
    def of(cls, url: str) -> Lookup:
        """The lookup that ``url`` means.

        Raises:
            ValueError: ``url`` is not of this kind; the text says what is wrong.
        """
        found = _LOOKUP.fullmatch(url)
        if found is None:
            raise ValueError(f"{url!r} {_problem(url)}")
        kind: Literal["dns", "srv"] = "dns" if found[1].lower() == "dns" else "srv"
        name, port = found[3].lower(), _port(found[4])
        if _is_address(name):
            raise ValueError(f"{url!r} has an address in place of a name: remove {kind}+")
        if kind == "srv" and found[4]:
            raise ValueError(f"{url!r} must not have a port, because SRV records state it")
        if port == 0:
            raise ValueError(f"{url!r} must have a port from 1 to 65535")
        if kind == "dns" and port is None:
            port = 443 if found[2].lower() == "https" else 80
        server = None if found[6] is None else _server(url, found[6])
        return cls(kind, found[2].lower(), name, port, found[5].rstrip("/"), server)


def is_lookup(url: str) -> bool:
    """Whether ``url`` begins as that of a lookup does; it may have other mistakes."""
    return url.lower().startswith(("dns+", "srv+")) or is_service(url)


def as_lookup_url(text: str) -> str:
    """The normalized URL of a lookup; raises ``ValueError`` if ``text`` is none."""
    if is_service(text):
        return as_service_url(text)
    Lookup.of(text)
    before, mark, server = text.partition("?")
    scheme, _, rest = before.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme.lower()}://{host.lower()}{(slash + path).rstrip('/')}{mark}{server.lower()}"


def _problem(url: str) -> str:
    if not re.match(r"(dns|srv)\+https?://", url, re.IGNORECASE):
        return f"must begin with {url[:3].lower()}+http:// or {url[:3].lower()}+https://"
    if "?" in url and not re.search(r"\?server=[^&]+$", url):
        return "may end with ?server=ADDRESS:PORT of a name server, but not with another query"
    return f"is not a URL like {_EXAMPLES[url[:3].lower()]}"


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _port(text: str | None) -> int | None:
    """The port; 0 if it is out of range, and ``None`` if there is none."""
    if not text:
        return None
    return port if 1 <= (port := int(text)) <= 65_535 else 0


def _server(url: str, text: str) -> NameServer:
    found = _SERVER.fullmatch(text)
    port = _port(found[2]) if found else 0
    if found is None or port == 0:
        raise ValueError(f"{url!r} must name its server as in ?server=10.0.0.2:8600")
    return NameServer(found[1].strip("[]").lower(), port or _DNS_PORT)
