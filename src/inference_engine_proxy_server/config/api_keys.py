"""API keys: their permissions and limits, and how they are written in API_KEYS.

Only the SHA-256 digest of a secret is stored. An unsalted digest is sufficient for secrets that cannot be guessed, so
short secrets are rejected. The time of a lookup by digest reveals nothing, as attackers cannot choose a digest's bytes.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

__all__ = [
    "ApiKey",
    "digest_of",
    "keys_by_digest",
    "new_secret",
    "parse_key",
    "valid_name",
    "valid_secret",
]

_SHORTEST_SECRET = 16  # characters
_NAME = r"[A-Za-z0-9._-]{1,64}"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A client's key, with its permissions; ``None`` means no limit.

    Attributes:
        name: for logs, metrics and ``/admin``; consists of A-Z, a-z, 0-9, ``.``, ``_``, ``-``.
        digest: SHA-256 of its secret; left out of ``repr``.
        models: the model names that its requests may use.
        priority: of its requests in the queue; higher goes first.
        requests_per_minute, tokens_per_minute: on average; a minute's amount may come at once.
        concurrent_requests: at a time.
        tokens_per_day, tokens_per_month: in UTC.
        expires_at: seconds since the epoch.
    """

    name: str
    digest: bytes = field(repr=False)
    models: frozenset[str] | None = None
    priority: int = 0
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    expires_at: float | None = None
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None


def digest_of(secret: bytes) -> bytes:
    """The digest that is stored in place of ``secret``."""
    return hashlib.sha256(secret).digest()


def new_secret() -> str:
    """A new secret with 256 random bits."""
    return f"sk-{secrets.token_urlsafe(32)}"


def keys_by_digest(keys: Iterable[ApiKey]) -> Mapping[bytes, ApiKey]:
    """The keys by the digests of their secrets.

    Raises:
        ValueError: two keys have the same name or the same secret.
    """
    found: dict[bytes, ApiKey] = {}
    names: set[str] = set()
    for key in keys:
        if key.name in names:
            raise ValueError(f"two keys have the name {key.name}")
        if key.digest in found:
            raise ValueError(f"the keys {found[key.digest].name} and {key.name} have the same secret")
        names.add(key.name)
        found[key.digest] = key
    return found


def parse_key(text: str) -> ApiKey:
    """A key as in API_KEYS: ``NAME:SECRET``.

    Raises:
        ValueError: ``text`` is not a key; the message does not repeat the secret.
    """
    name, colon, secret = text.partition(":")
    if not colon or not re.fullmatch(_NAME, name):
        raise ValueError("each key must be NAME:SECRET, with a name of letters, digits, '.', '_' and '-'")
    return ApiKey(name, digest_of(valid_secret(secret).encode()))


def valid_name(name: str) -> str:
    """``name``, unchanged; raises ``ValueError`` if it is not the name of a key."""
    if not re.fullmatch(_NAME, name):
        raise ValueError("must be 1 to 64 letters, digits, '.', '_' and '-'")
    return name


def valid_secret(secret: str) -> str:
    """``secret``, unchanged; raises ``ValueError``, without repeating it, if it is too short or has blanks."""
    if len(secret) < _SHORTEST_SECRET or not re.fullmatch(r"[\x21-\x7e]+", secret):
        advice = "`inference-proxy keys new NAME` creates one"
        raise ValueError(f"a secret must have {_SHORTEST_SECRET} characters or more, and no blanks: {advice}")
    return secret
