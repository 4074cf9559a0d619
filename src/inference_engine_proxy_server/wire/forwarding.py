"""What a request tells the next hop about the way it has come.

``X-Forwarded-For``, ``-Proto``, ``-Host``, ``X-Real-IP`` and ``Forwarded`` (RFC 7239) are believed only when a trusted
proxy sent them; else they are replaced. ``Via`` (RFC 9110, 7.6.3) finds requests that go round in circles.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network

from inference_engine_proxy_server.errors import ClientError
from inference_engine_proxy_server.wire.request_head import RequestHead

__all__ = ["Forwarding"]


class Forwarding:
    """What this proxy says, and whom it believes.

    Args:
        trusted: networks of proxies in front of this one.
        name: ours in ``Via``, no other process's: two proxies of this kind in a row are no circle.
        is_tls: clients reach us over TLS.
    """

    def __init__(self, trusted: Sequence[IPv4Network | IPv6Network], *, name: str, is_tls: bool) -> None:
        self._trusted = tuple(trusted)
        self._name = name.encode()
        self._scheme = b"https" if is_tls else b"http"

    def trusts(self, address: str) -> bool:
        """Whether ``address`` is a proxy whose word counts; what is no IP address is not."""
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        mapped = getattr(parsed, "ipv4_mapped", None)  # how an IPv6 socket sees an IPv4 peer
        return any((mapped or parsed) in network for network in self._trusted)

    def describe(self, head: RequestHead, peer: str, *, is_trusted: bool) -> bytes:
        """The lines to pass on with ``head``, which came from ``peer``.

        Raises:
            ClientError: 508, the request has been here before.
        """
        way = head.way
        via = way.get(b"via")
        if via is not None and self._name in via:
            message = "The request has come back to this proxy: one of its backends leads to it."
            raise ClientError(message, status=508, code="loop_detected")
        told = way if is_trusted else {}
        before = told.get(b"x-forwarded-for")
        host = told.get(b"x-forwarded-host") or head.host
        lines = [
            b"x-forwarded-for: %b\r\n" % (b"%b, %b" % (before, peer.encode()) if before else peer.encode()),
            b"x-forwarded-proto: %b\r\n" % (told.get(b"x-forwarded-proto") or self._scheme),
            b"x-forwarded-host: %b\r\n" % host if host else b"",
            *(b"%b: %b\r\n" % (name, told[name]) for name in (b"x-real-ip", b"forwarded") if name in told),
            b"via: %b1.%d %b\r\n" % (via + b", " if via else b"", head.minor_version, self._name),
        ]
        return b"".join(lines)

    def client_of(self, head: RequestHead) -> str | None:
        """The address of the client itself, as the trusted proxy that sent ``head`` tells it; ``None``: it does not.

        That is the last one in X-Forwarded-For that is no trusted proxy: what stands before it, the client wrote.
        """
        for told in reversed(head.way.get(b"x-forwarded-for", b"").split(b",")):
            address = _without_port(told.strip().decode("latin-1"))
            if address and not self.trusts(address):
                return address if _is_address(address) else None
        return None


def _without_port(text: str) -> str:
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


def _is_address(text: str) -> bool:
    if "%" in text:  # a zone of this machine's links, which may have anything in its name
        return False
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
