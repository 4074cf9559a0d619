"""Asks a running proxy for snapshots, and sends it operators' commands. Blocks."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

__all__ = ["ProxyClient", "Refused", "Unreachable", "updated"]

_SECONDS = 5.0
_MOST_BYTES = 64 * 1024 * 1024
_MOST_SHOWN = 200  # characters of a text that another program sent
_MOST_EVENTS = 500


class Unreachable(Exception):
    """The proxy does not answer, or something else does; the text says what to check."""


class Refused(Exception):
    """The proxy answered with an error; the text is its message."""


class ProxyClient:
    """One proxy.

    Args:
        url: its base URL; a path in front of the proxy may follow the port.
        admin_key: its ADMIN_KEY; ``None`` without one.

    Raises:
        ValueError: ``url`` is not the base URL of an HTTP server; the text says what is wrong.
    """

    def __init__(self, url: str, admin_key: str | None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is not a base URL like http://127.0.0.1:8888")
        self.url = url.rstrip("/")
        self._fields = {"accept": "application/json"} if admin_key is None else {"x-admin-key": admin_key}
        # Without the proxies of the environment: this asks a machine of one's own network.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def snapshot(self) -> dict[str, Any]:
        """The content of ``/dashboard/snapshot``.

        Raises:
            Unreachable: there is no answer, or it is not that of a proxy.
            Refused: the key is wrong.
        """
        content = self._ask("/dashboard/snapshot", None)
        if not _is_snapshot(content):
            raise self._is_another_server()
        return content

    def follow(self) -> Iterator[dict[str, Any]]:
        """A snapshot a second from ``/dashboard/feed``, until the proxy ends the feed. Raises as :meth:`snapshot`."""
        latest: dict[str, Any] = {}
        with self._open("/dashboard/feed", None) as feed:
            while (data := self._next_event(feed)) is not None:
                latest = updated(latest, data)
                if not _is_snapshot(latest):
                    raise self._is_another_server()
                yield latest

    def drain(self, backend: str, *, is_draining: bool) -> None:
        """Take a backend out of rotation, or put it back. Raises as :meth:`snapshot`."""
        self._ask(f"/admin/backends/{quote(backend, safe='')}/{'drain' if is_draining else 'undrain'}", b"")

    def cancel(self, request_id: str) -> None:
        """End a request. Raises as :meth:`snapshot`."""
        self._ask(f"/admin/requests/{quote(request_id, safe='')}/cancel", b"")

    def _ask(self, path: str, body: bytes | None) -> dict[str, Any]:
        with self._open(path, body) as reply:
            return self._object(self._read(lambda: reply.read(_MOST_BYTES)))

    def _open(self, path: str, body: bytes | None) -> Any:
        request = urllib.request.Request(self.url + path, body, self._fields)  # noqa: S310 - the scheme is checked
        try:
            return self._opener.open(request, timeout=_SECONDS)
        except urllib.error.HTTPError as error:
            with error:
                raise Refused(_message_of(error)) from None
        except OSError as error:
            raise self._is_unreachable(error) from None

    def _next_event(self, feed: Any) -> dict[str, Any] | None:
        """The data of the next server-sent event; ``None`` at the end of the feed."""
        data = b""
        while line := self._read(lambda: feed.readline(_MOST_BYTES)):
            if line.startswith(b"data: "):
                data += line[6:]
            elif not line.strip() and data:
                return self._object(data)
        return None

    def _read(self, read: Callable[[], bytes]) -> bytes:
        try:
            return read()
        except (OSError, http.client.HTTPException) as error:
            raise self._is_unreachable(error) from None

    def _object(self, text: bytes) -> dict[str, Any]:
        try:
            content = json.loads(text)
        except ValueError:
            raise self._is_another_server() from None
        return content if isinstance(content, dict) else {}

    def _is_another_server(self) -> Unreachable:
        return Unreachable(f"{self.url} is no inference-proxy, or an older one: it has no dashboard")

    def _is_unreachable(self, error: Exception) -> Unreachable:
        reason = getattr(error, "reason", error)
        return Unreachable(f"{self.url} cannot be reached: {getattr(reason, 'strerror', None) or reason}")


def updated(latest: Mapping[str, Any], news: dict[str, Any]) -> dict[str, Any]:
    """The snapshot ``latest`` after an event of the feed: an event that is known is replaced by its new version."""
    if news.get("complete"):
        return news
    events = {event["id"]: event for event in (*latest.get("events", ()), *news.get("events", ()))}
    return {**latest, **news, "events": list(events.values())[-_MOST_EVENTS:]}


def _is_snapshot(content: Mapping[str, Any]) -> bool:
    return {"fleet", "backends", "events"} <= content.keys()


def _message_of(error: urllib.error.HTTPError) -> str:
    try:
        message = str(json.loads(error.read(_MOST_BYTES))["error"]["message"])
    except (ValueError, KeyError, TypeError, OSError):
        message = f"it answered {error.code}"
    return message[:_MOST_SHOWN]
