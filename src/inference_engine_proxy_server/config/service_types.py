"""URLs with a service type, whose instances in the local network are found by multicast DNS."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

__all__ = ["ServiceType", "as_service_url", "is_service"]

# RFC 6763, section 7: an underscore and up to 15 letters, digits and hyphens.
_SERVICE = re.compile(
    r"mdns\+(https?)://(_[a-z0-9](?:[a-z0-9-]{0,13}[a-z0-9])?\._tcp)(?:\.local)?\.?/?(?:\?interface=([0-9.]+))?",
    re.ASCII | re.IGNORECASE,
)
_EXAMPLE = "mdns+http://_inference._tcp"


@dataclass(frozen=True, slots=True)
class ServiceType:
    """Which services are backends.

    Attributes:
        scheme: of those that do not state one, "http" or "https".
        name: of the type, such as ``_inference._tcp.local.``.
        interface: IPv4 address of the network interface to listen on; ``None`` for all.
    """

    scheme: str
    name: str
    interface: str | None

    @classmethod
    def of(cls, url: str) -> ServiceType:
        """The service type that ``url`` means.

        Raises:
            ValueError: ``url`` is not of this kind; the text says what is wrong.
        """
        found = _SERVICE.fullmatch(url)
        if found is None:
            raise ValueError(f"{url!r} is not a URL like {_EXAMPLE}, or {_EXAMPLE}?interface=192.168.1.5")
        if found[3] is not None and not _is_address(found[3]):
            raise ValueError(f"{url!r} must name an interface by its IPv4 address, as in ?interface=192.168.1.5")
        return cls(found[1].lower(), f"{found[2].lower()}.local.", found[3])


def is_service(url: str) -> bool:
    """Whether ``url`` begins as that of a service type does; it may have other mistakes."""
    return url.lower().startswith("mdns+")


def as_service_url(text: str) -> str:
    """The normalized URL of a service type; raises ``ValueError`` if ``text`` is none."""
    found = ServiceType.of(text)
    interface = "" if found.interface is None else f"?interface={found.interface}"
    return f"mdns+{found.scheme}://{found.name.removesuffix('.local.')}{interface}"


def _is_address(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True
