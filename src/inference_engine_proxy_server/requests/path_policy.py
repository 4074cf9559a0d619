"""The deny-list of paths: engines' control endpoints, which would change an engine for all its clients."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from urllib.parse import unquote

from inference_engine_proxy_server.config.settings import PathRule

__all__ = ["PathPolicy", "readings"]

_UNUSUAL = re.compile(r"[%\\]|//|/\.|/$")


class PathPolicy:
    """The deny-list of BLOCKED_PATHS, indexed for lookups."""

    def __init__(self, rules: Iterable[PathRule]) -> None:
        rules = tuple(rules)
        self._exact = {(rule.method, rule.path) for rule in rules if not rule.is_prefix}
        self._by_prefix = [(rule.method, rule.path) for rule in rules if rule.is_prefix]
        self._prefixes = tuple(prefix for _, prefix in self._by_prefix)

    def blocks(self, method: str, path: str) -> bool:
        """Whether the request is blocked."""
        return any(self._matches(method, reading) for reading in readings(path))

    def _matches(self, method: str, path: str) -> bool:
        if (None, path) in self._exact or (method, path) in self._exact:
            return True
        return path.startswith(self._prefixes) and any(
            path.startswith(prefix) and blocked in (None, method) for blocked, prefix in self._by_prefix
        )


def readings(path: str) -> set[str]:
    """Every way in which an engine might read ``path``, which is forwarded unchanged.

    Percent-decoded zero, one or two times, with and without backslashes taken as slashes, and each of these with and
    without normalization (doubled slashes, dot segments, trailing slash). One blocked reading blocks the request.
    """
    if _UNUSUAL.search(path) is None:
        return {path}
    decoded = {path, unquote(path), unquote(unquote(path))}
    slashed = decoded | {reading.replace("\\", "/") for reading in decoded}
    return slashed | {posixpath.normpath("/" + reading.lstrip("/")) for reading in slashed}
