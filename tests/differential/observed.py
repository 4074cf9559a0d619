"""Requests as a backend understood them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["REFUSED", "Backend", "Observed", "from_raw"]


@dataclass(frozen=True, slots=True)
class Observed:
    """One request as a backend understood it.

    Attributes:
        body: SHA-256 of it, in hexadecimal.
    """

    method: str
    target: bytes
    body: str

    @classmethod
    def of(cls, method: str, target: bytes, body: bytes) -> Observed:
        return cls(method, target, hashlib.sha256(body).hexdigest())


REFUSED = Observed("", b"", "")
"""A request that the backend called malformed."""


@dataclass(frozen=True, slots=True)
class Backend:
    """A server that records the requests it understood.

    Attributes:
        name: of the server program.
        observed: all requests so far, in order.
    """

    name: str
    url: str
    observed: Callable[[], list[Observed]]


def from_raw(request: bytes) -> Observed:
    """Parse one request that is framed by Content-Length only."""
    section, _, body = request.partition(b"\r\n\r\n")
    method, target, _ = section.partition(b"\r\n")[0].split(b" ")
    return Observed.of(method.decode(), target, body)
