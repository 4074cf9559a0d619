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
        authority: value of the ``Host`` field.
        prefix: prepended to every request's path; empty, or ``/...`` without a trailing slash.
    """

    host: str
    port: int
    is_tls: bool
    authority: bytes
    prefix: bytes

    @classmethod
    def of(cls, url: str) -> Origin:
        """The origin of a base URL, which the settings have already validated."""
        parts = urlsplit(url)
        is_tls = parts.scheme == "https"
        authority = re.sub(r"^.*@", "", parts.netloc).encode()
        port = parts.port or (443 if is_tls else 80)
        return cls(parts.hostname or "", port, is_tls, authority, parts.path.rstrip("/").encode())

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
