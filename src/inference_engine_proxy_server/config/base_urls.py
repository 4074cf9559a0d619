"""Base URLs of engine servers: validation, normalization, and which URLs mean the same server."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from inference_engine_proxy_server.config.lookups import as_lookup_url, is_lookup

__all__ = ["as_backend_url", "as_base_url", "distinct_backend_urls", "name_of", "server_of"]

_BASE_URL = re.compile(
    r"(https?)://([\w.-]+|\[[0-9a-f:.]+\])(?::(\d{1,5}))?((?:/[\w.~!$&'()*+;=:%-]*)*)", re.ASCII | re.IGNORECASE
)


def as_base_url(text: str) -> str:
    """The normalized URL: scheme and host in lower case, no trailing slash.

    Raises:
        ValueError: ``text`` is not a base URL; the message does not repeat a password.
    """
    if "@" in text:
        raise ValueError("a URL with a user name or password is not supported")
    if not text.lower().startswith(("http://", "https://")):
        raise ValueError(f"{text!r} must begin with http:// or https://")
    if "?" in text or "#" in text:
        raise ValueError(f"{text!r} must not have a query (?) or fragment (#)")
    url = _BASE_URL.fullmatch(text)
    if url is None or (url[3] and not 1 <= int(url[3]) <= 65535):
        raise ValueError(f"{text!r} is not a base URL like http://llm-1:8080")
    port = f":{url[3]}" if url[3] else ""
    return f"{url[1].lower()}://{url[2].lower()}{port}{url[4].rstrip('/')}"


def as_backend_url(text: str) -> str:
    """The normalized base URL, or the normalized URL of a lookup; raises ``ValueError`` if ``text`` is neither."""
    return as_lookup_url(text) if is_lookup(text) else as_base_url(text)


def server_of(url: str) -> tuple[str, str, int, str]:
    """Scheme, host, port and path: equal for two base URLs of the same server, and for two URLs of one lookup."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme.endswith("https") else 80)
    return parts.scheme, parts.hostname or "", port, parts.path + (f"?{parts.query}" if parts.query else "")


def name_of(url: str) -> str:
    """A short name, unique among servers with the same scheme: ``llm-1:8080``. Services have no port."""
    scheme, host, port, path = server_of(url)
    if scheme.startswith(("srv+", "mdns+")):
        return host + path
    return f"[{host}]:{port}{path}" if ":" in host else f"{host}:{port}{path}"


def distinct_backend_urls(texts: Iterable[str]) -> tuple[str, ...]:
    """The normalized URLs of backends and lookups, in the given order.

    Raises:
        ValueError: a text is no such URL, or two mean the same server, which would get a double share of requests.
    """
    urls = tuple(map(as_backend_url, texts))
    seen = set()
    for url in urls:
        server = server_of(url)
        if server in seen:
            raise ValueError(f"{url!r} is listed twice")
        seen.add(server)
    return urls
