"""The address of a backend, from its base URL."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import urlsplit

__all__ = ["Origin"]


@dataclass(frozen=True, slots=True)
class Origin:
    """A backend's network address and path prefix.

    Attributes:
        host: its name or address, to connect to.
        server_name: the name that its certificate must have.
        authority: value of the ``Host`` field.
        prefix: prepended to every request's path; empty, or ``/...`` without a trailing slash.
    """

    host: str
    port: int
    is_tls: bool
    server_name: str
    authority: bytes
    prefix: bytes

    @classmethod
    def of(cls, url: str, host_name: str | None = None) -> Origin:
        """The origin of a base URL, which the settings have already validated.

        Args:
            url: the base URL.
            host_name: the name of the server if ``url`` has only its address.
        """
        parts = urlsplit(url)
        is_tls = parts.scheme == "https"
        port = parts.port or (443 if is_tls else 80)
        host = parts.hostname or ""
        authority = re.sub(r"^.*@", "", parts.netloc)
        if host_name is not None:
            authority = host_name if parts.port is None else f"{host_name}:{parts.port}"
        return cls(host, port, is_tls, host_name or host, authority.encode(), parts.path.rstrip("/").encode())

    def locations(self) -> re.Pattern[bytes]:
        """Finds the origin in ``Location`` and ``Content-Location`` lines, up to the slash after the prefix.

        Group 1 is the line before the value.
        """
        default_port = rb"(?::%d)?" % self.port if self.port in (80, 443) else rb""
        authority = re.escape(self.authority) + (default_port if b":" not in self.authority else b"")
        prefix = rb"(?:%b(?=[/?#\r]))?" % re.escape(self.prefix) if self.prefix else rb""
        return re.compile(
            rb"((?:^|\n)(?:content-)?location:[ \t]*)(?:https?:)?//" + authority + prefix + rb"(?:/(?!/)|(?=[?#\r]))",
            re.IGNORECASE,
        )
