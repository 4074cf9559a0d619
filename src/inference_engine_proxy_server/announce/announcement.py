"""What an announcer says of its engine, and how it says it to one proxy. Blocks; announcers run it in threads."""

from __future__ import annotations

import http.client
import json
import secrets
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

__all__ = ["Announcement", "Leaving", "ProxyAddress", "Refused", "Unreachable"]

_SECONDS = 5.0  # for each step of a request
_MOST_BYTES = 1024 * 1024
_MOST_SHOWN = 1000  # characters of a text that another program sent


class Unreachable(Exception):
    """The proxy does not answer, or something else does; the text says why."""


class Refused(Exception):
    """The proxy answered with an error; the text is its message.

    Attributes:
        is_final: repeating the request will not help.
    """

    def __init__(self, text: str, *, is_final: bool) -> None:
        super().__init__(text)
        self.is_final = is_final


@dataclass(frozen=True, slots=True)
class Announcement:
    """What is announced.

    Attributes:
        entry: the backend, as the fleet file describes it; its ``url`` is a base URL.
        lease_seconds: how long the backend stays in a fleet without another announcement.
        announcer: tells announcers of one backend apart, so that the end of an old one does not end the lease of a new.
    """

    entry: Mapping[str, Any] = field(repr=False)
    lease_seconds: float
    announcer: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def url(self) -> str:
        """Base URL of the engine."""
        return str(self.entry["url"])


@dataclass(frozen=True, slots=True)
class Leaving:
    """How far an engine has left the fleet of a proxy.

    Attributes:
        source: what keeps the backend in the fleet, such as the configuration; ``None`` if it has left.
        requests: requests of this proxy that the engine still has.
    """

    source: str | None
    requests: int


class ProxyAddress:
    """One proxy.

    Args:
        url: its base URL; the one on ADMIN_PORT, if it has that.
        key: its ANNOUNCE_KEY.

    Raises:
        ValueError: ``url`` is not the base URL of an HTTP server; the text says what is wrong.
    """

    def __init__(self, url: str, key: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise ValueError(f"{url!r} is not a base URL like http://proxy:8888")
        self.url = url.rstrip("/")
        self._host, self._port, self._path = parts.hostname, parts.port, parts.path.rstrip("/")
        self._is_tls = parts.scheme == "https"
        self._fields = {"authorization": f"Bearer {key}", "connection": "close"}

    def announce(self, announcement: Announcement) -> dict[str, Any]:
        """Announce, or renew the lease; returns what the proxy says of the backend.

        Raises:
            Unreachable: there is no answer of a proxy.
            Refused: the proxy does not accept the announcement.
        """
        lease = {"lease_seconds": announcement.lease_seconds, "announcer": announcement.announcer}
        return self._ask("PUT", "/admin/announced", {**announcement.entry, **lease})

    def leave(self, announcement: Announcement, wait_seconds: float, *, moves: bool) -> Leaving:
        """End the lease, and wait for the end of the engine's requests; raises as :meth:`announce`.

        Args:
            wait_seconds: longest wait.
            moves: whether other backends take over the requests, as far as they can.
        """
        query = {"url": announcement.url, "announcer": announcement.announcer, "wait_seconds": f"{wait_seconds:g}"}
        path = f"/admin/announced?{urlencode({**query, **({'move': 'true'} if moves else {})})}"
        answer = self._ask("DELETE", path, None)
        return Leaving(answer.get("source"), int(answer.get("requests_in_flight", 0)))

    def _ask(self, method: str, path: str, content: object) -> dict[str, Any]:
        connection = self._connection()
        body = None if content is None else json.dumps(content).encode()
        fields = self._fields if body is None else {**self._fields, "content-type": "application/json"}
        try:
            connection.request(method, self._path + path, body, fields)
            reply = connection.getresponse()
            answer = _object(reply.read(_MOST_BYTES))
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise Unreachable(f"it cannot be reached: {reason}") from None
        finally:
            connection.close()
        if reply.status >= 500:
            raise Unreachable(f"it answered {reply.status}{_message_in(answer)}")
        if reply.status != 200:
            raise Refused(
                f"it answered {reply.status}{_message_in(answer)}", is_final=reply.status not in (408, 409, 429)
            )
        if "url" not in answer:
            raise Unreachable("something else than an inference-proxy answers there")
        return answer

    def _connection(self) -> http.client.HTTPConnection:
        if not self._is_tls:
            return http.client.HTTPConnection(self._host, self._port, timeout=_SECONDS)
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(self._host, self._port, timeout=_SECONDS, context=context)


def _object(text: bytes) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _message_in(answer: Mapping[str, Any]) -> str:
    error = answer.get("error")
    message = error.get("message") if isinstance(error, dict) else None
    return f": {str(message)[:_MOST_SHOWN]}" if message else ""
