"""Asks a running proxy for snapshots, and sends it operators' commands. Blocks."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import quote, urlsplit

__all__ = ["ProxyClient", "Refused", "Unreachable"]

_SECONDS = 5.0
_MOST_BYTES = 64 * 1024 * 1024
_MOST_SHOWN = 200  # characters of a text that another program sent


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
        if not {"fleet", "backends", "events"} <= content.keys():
            raise Unreachable(f"{self.url} is no inference-proxy, or an older one: it has no /dashboard/snapshot")
        return content

    def drain(self, backend: str, *, is_draining: bool) -> None:
        """Take a backend out of rotation, or put it back. Raises as :meth:`snapshot`."""
        self._ask(f"/admin/backends/{quote(backend, safe='')}/{'drain' if is_draining else 'undrain'}", b"")

    def cancel(self, request_id: str) -> None:
        """End a request. Raises as :meth:`snapshot`."""
        self._ask(f"/admin/requests/{quote(request_id, safe='')}/cancel", b"")

    def _ask(self, path: str, body: bytes | None) -> dict[str, Any]:
        request = urllib.request.Request(self.url + path, body, self._fields)  # noqa: S310 - the scheme is checked
        try:
            with self._opener.open(request, timeout=_SECONDS) as reply:
                content = json.loads(reply.read(_MOST_BYTES))
        except urllib.error.HTTPError as error:
            with error:
                raise Refused(_message_of(error)) from None
        except ValueError:
            raise Unreachable(f"{self.url} is no inference-proxy: its answer is not JSON") from None
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise Unreachable(f"{self.url} cannot be reached: {getattr(reason, 'strerror', None) or reason}") from None
        return content if isinstance(content, dict) else {}


def _message_of(error: urllib.error.HTTPError) -> str:
    try:
        message = str(json.loads(error.read(_MOST_BYTES))["error"]["message"])
    except (ValueError, KeyError, TypeError, OSError):
        message = f"it answered {error.code}"
    return message[:_MOST_SHOWN]
