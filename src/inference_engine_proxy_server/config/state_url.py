"""STATE_URL: where the Redis or Valkey server is whose state several replicas share."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

__all__ = ["StateUrl", "as_state_prefix", "as_state_url"]

_FORMS = "redis://[[USER]:PASSWORD@]HOST[:PORT][/DB], the same with rediss:// for TLS, or unix:///PATH[?db=DB]"
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_MOST_DATABASES = 1_000_000
_PREFIX = r"[A-Za-z0-9._:{}-]{1,64}"


@dataclass(frozen=True, slots=True)
class StateUrl:
    """The URL. Its text never has the password.

    Attributes:
        whole: with user name and password, as redis-py's ``from_url`` takes it; left out of ``repr``.
        shown: without them.
    """

    whole: str = field(repr=False)
    shown: str

    def __str__(self) -> str:
        return self.shown


def as_state_url(value: object) -> StateUrl:
    """The checked URL of a text.

    Raises:
        ValueError: it cannot be used; the message does not repeat a password.
    """
    if isinstance(value, StateUrl):
        return value
    text = str(value)
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError(f"the port must be from 1 to 65535, as in {_FORMS}") from None
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    is_socket = parts.scheme == "unix"
    if parts.scheme not in ("redis", "rediss", "unix") or parts.fragment or re.search(r"\s", text):
        raise ValueError(f"must be {_FORMS}")
    if is_socket and (parts.hostname or len(parts.path) < 2):
        raise ValueError("the path of a Unix socket is written with three slashes: unix:///run/redis/redis.sock")
    if not is_socket and (not parts.hostname or port == 0):
        raise ValueError(f"it names no server: it must be {_FORMS}")
    if not is_socket and not re.fullmatch(r"(/\d*)?", parts.path):
        raise ValueError("after the server, there may be the number of a database only, as in redis://redis:6379/1")
    _check_options(parts.scheme, options)
    database = options.get("db", "0") if is_socket else parts.path.lstrip("/") or "0"
    if not database.isdecimal() or int(database) > _MOST_DATABASES:
        raise ValueError("the database must be a number, as in redis://redis:6379/1")
    server = parts.path if is_socket else parts.netloc.rpartition("@")[2]
    return StateUrl(text, f"{parts.scheme}://{server}" + (f"/{database}" if not is_socket and int(database) else ""))


def as_state_prefix(value: object) -> str:
    """The prefix of keys; raises ``ValueError`` if it is unsuitable."""
    text = str(value)
    if not re.fullmatch(_PREFIX, text):
        raise ValueError("must be 1 to 64 letters, digits, '.', '_', ':', '-' and braces")
    return text


def _check_options(scheme: str, options: dict[str, str]) -> None:
    """redis-py passes unknown options on to its connections, where they fail with every attempt."""
    known = {"redis": (), "rediss": _FILES, "unix": ("db",)}[scheme]
    for name in options:
        if name not in known:
            allowed = f"only {', '.join(known)} may follow" if known else "nothing may follow"
            raise ValueError(f"the option {name[:40]!r} is unknown: {allowed} '?' in a URL with {scheme}://")
