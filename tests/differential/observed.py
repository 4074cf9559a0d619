"""What a backend took for a request."""

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
"""Stands for something that the backend took for a request, and called malformed."""


@dataclass(frozen=True, slots=True)
class Backend:
    """A server that notes what it takes for requests.

    Attributes:
        name: which one it is.
        observed: all of it so far, in order.
    """

    name: str
    url: str
    observed: Callable[[], list[Observed]]


def from_raw(request: bytes) -> Observed:
    """What the bytes of one request are, which has nothing but a Content-Length to frame it."""
    section, _, body = request.partition(b"\r\n\r\n")
    method, target, _ = section.partition(b"\r\n")[0].split(b" ")
    return Observed.of(method.decode(), target, body)
