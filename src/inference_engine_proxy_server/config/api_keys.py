"""API keys: their permissions and limits, and how they are written in API_KEYS and in the file of keys.

Only the SHA-256 digest of a secret is stored. An unsalted digest is sufficient for secrets that cannot be guessed, so
short secrets are refused. The time of a lookup by digest reveals nothing, as attackers cannot choose a digest's bytes.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

__all__ = ["ApiKey", "KeyFileError", "digest_of", "keys_by_digest", "new_secret", "parse_key", "read_key_file"]

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


class KeyFileError(Exception):
    """The file of keys cannot be used; the text says why, without any secret."""


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
    return ApiKey(name, digest_of(_valid_secret(secret).encode()))


def _valid_secret(secret: str) -> str:
    if len(secret) < _SHORTEST_SECRET or not re.fullmatch(r"[\x21-\x7e]+", secret):
        advice = "`inference-proxy keys new NAME` creates one"
        raise ValueError(f"a secret must have {_SHORTEST_SECRET} characters or more, and no blanks: {advice}")
    return secret


def _as_time(value: object) -> float:
    """Seconds since the epoch; a date alone means the end of that day."""
    if isinstance(value, str):
        value = date.fromisoformat(value) if re.fullmatch(r"\d{4}-\d\d-\d\d", value) else datetime.fromisoformat(value)
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, date):
        return datetime.combine(value, time.max, UTC).timestamp()
    raise ValueError("must be a date like 2027-01-31, or a time like 2027-01-31T12:00:00Z")


_Limit = Annotated[int, Field(ge=1, le=10**9)]


class _Entry(BaseModel):
    """One key in the file."""

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    name: Annotated[str, Field(pattern=f"^{_NAME}$")]
    secret: str | None = None
    sha256: Annotated[str | None, Field(pattern=r"^[0-9a-fA-F]{64}$")] = None
    models: list[str] | None = None
    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    requests_per_minute: _Limit | None = None
    tokens_per_minute: _Limit | None = None
    concurrent_requests: _Limit | None = None
    expires: Annotated[float | None, BeforeValidator(_as_time)] = None

    @field_validator("*", mode="before")
    @classmethod
    def _is_not_blank(cls, value: object) -> object:
        if value is None:  # `models:` without a value must not mean all models
            raise ValueError("must have a value; to leave it unset, remove the line")
        return value

    @model_validator(mode="after")
    def _has_one_secret(self) -> _Entry:
        if (self.secret is None) == (self.sha256 is None):
            raise ValueError("set either 'sha256' or 'secret'")
        if self.secret is not None:
            _valid_secret(self.secret)
        return self

    def key(self) -> ApiKey:
        digest = bytes.fromhex(self.sha256) if self.sha256 else digest_of((self.secret or "").encode())
        return ApiKey(
            self.name,
            digest,
            None if self.models is None else frozenset(self.models),
            self.priority,
            self.requests_per_minute,
            self.tokens_per_minute,
            self.concurrent_requests,
            self.expires,
        )


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    keys: list[_Entry]


def read_key_file(path: Path) -> list[ApiKey]:
    """The keys in a YAML file: ``keys:``, a list of objects with ``name``, ``sha256`` or ``secret``, and limits.

    Raises:
        KeyFileError: the file cannot be read, or is invalid.
    """
    try:
        content: Any = yaml.safe_load(path.read_text("utf-8"))
        if content is None:  # an editor may be about to write the content, and must not lock out clients meanwhile
            raise KeyFileError(f"{path} is empty; if that is intended, write 'keys: []'")
        return [entry.key() for entry in _File.model_validate(content).keys]
    except OSError as error:
        raise KeyFileError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        raise KeyFileError(f"{path} is not YAML{f', line {mark.line + 1}' if mark else ''}") from None
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        place = ".".join(map(_shown, first["loc"]))
        raise KeyFileError(f"{path}: {place}: {first['msg'].removeprefix('Value error, ')}") from None
    except (ValueError, OverflowError, RecursionError):  # the YAML library's, such as for 2027-02-31
        raise KeyFileError(f"{path} is not YAML, or contains an impossible date or number") from None


def _shown(part: str | int) -> str:
    """A part of a place in the file; an unknown field may be a misplaced secret."""
    return str(part) if part in _Entry.model_fields or len(str(part)) < _SHORTEST_SECRET else "***"
