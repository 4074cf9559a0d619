"""Forwarding header fields: which hops a request has passed through.

``X-Forwarded-For``, ``-Proto``, ``-Host``, ``X-Real-IP`` and ``Forwarded`` (RFC 7239) are kept only when a trusted
proxy sent them; otherwise they are replaced. ``Via`` (RFC 9110, 7.6.3) detects forwarding loops.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network

from inference_engine_proxy_server.errors import ClientError
from inference_engine_proxy_server.wire.request_head import RequestHead

__all__ = ["Forwarding", "peer_of"]


class Forwarding:
    """Builds the forwarding fields for backends and finds the client's address.

    Args:
        trusted: networks of the trusted proxies in front of this one.
        name: this proxy's name in ``Via``. Unique to one process, so that two proxies of this kind in a row are not
            mistaken for a loop.
        is_tls: clients connect to this proxy over TLS.
    """

    def __init__(self, trusted: Sequence[IPv4Network | IPv6Network], *, name: str, is_tls: bool) -> None:
        self._trusted = tuple(trusted)
        self._name = name.encode()
        self._scheme = b"https" if is_tls else b"http"

    def trusts(self, address: str) -> bool:
        """Whether ``address`` belongs to a trusted proxy; ``False`` for text that is not an IP address."""
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return False
        mapped = getattr(parsed, "ipv4_mapped", None)  # an IPv6 socket reports IPv4 peers this way
        return any((mapped or parsed) in network for network in self._trusted)

    def describe(self, head: RequestHead, peer: str, *, is_trusted: bool) -> bytes:
        """The forwarding field lines to send with ``head``, which came from ``peer``.

        Raises:
            ClientError: 508, the request has already passed through this proxy.
        """
        received = head.way
        via = received.get(b"via")
        if via is not None and self._name in via:
            message = "The request has looped: a backend sent it back to this proxy."
            raise ClientError(message, status=508, code="loop_detected")
        trusted = received if is_trusted else {}
        earlier = trusted.get(b"x-forwarded-for")
        host = trusted.get(b"x-forwarded-host") or head.host
        lines = [
            b"x-forwarded-for: %b\r\n" % (b"%b, %b" % (earlier, peer.encode()) if earlier else peer.encode()),
            b"x-forwarded-proto: %b\r\n" % (trusted.get(b"x-forwarded-proto") or self._scheme),
            b"x-forwarded-host: %b\r\n" % host if host else b"",
            *(b"%b: %b\r\n" % (name, trusted[name]) for name in (b"x-real-ip", b"forwarded") if name in trusted),
            b"via: %b1.%d %b\r\n" % (via + b", " if via else b"", head.minor_version, self._name),
        ]
        return b"".join(lines)

    def client_of(self, head: RequestHead) -> str | None:
        """The original client's address, as reported by the trusted proxy that sent ``head``; ``None`` if not reported.

        This is the last address in X-Forwarded-For that is not a trusted proxy. The client itself may have forged
        everything before it.
        """
        for hop in reversed(head.way.get(b"x-forwarded-for", b"").split(b",")):
            address = _without_port(hop.strip().decode("latin-1"))
            if address and not self.trusts(address):
                return address if _is_address(address) else None
        return None


def peer_of(name: object) -> tuple[str, str]:
    """Address of a peer, and the same with its port, from ``name`` as a socket reports it."""
    if not isinstance(name, tuple):
        return "unknown", "local"
    host = str(name[0]).removeprefix("::ffff:")  # a dual-stack socket reports IPv4 peers this way
    return host, f"[{host}]:{name[1]}" if ":" in host else f"{host}:{name[1]}"


def _without_port(text: str) -> str:
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


def _is_address(text: str) -> bool:
    if "%" in text:  # an IPv6 zone, whose name may contain any character
        return False
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
