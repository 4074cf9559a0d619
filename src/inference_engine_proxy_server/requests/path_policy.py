"""Which requests are not passed on: engines' own control endpoints that would change them for everybody."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from urllib.parse import unquote

from inference_engine_proxy_server.config.settings import PathRule

__all__ = ["PathPolicy"]

_UNUSUAL = re.compile(r"[%\\]|//|/\.|/$")


class PathPolicy:
    """The deny-list, ready for asking."""

    def __init__(self, rules: Iterable[PathRule]) -> None:
        rules = tuple(rules)
        self._exact = {(rule.method, rule.path) for rule in rules if not rule.is_prefix}
        self._by_prefix = [(rule.method, rule.path) for rule in rules if rule.is_prefix]
        self._prefixes = tuple(prefix for _, prefix in self._by_prefix)

    def blocks(self, method: str, path: str) -> bool:
        """Whether a request is not passed on."""
        readings = _readings(path) if _UNUSUAL.search(path) else (path,)
        return any(self._matches(method, reading) for reading in readings)

    def _matches(self, method: str, path: str) -> bool:
        if (None, path) in self._exact or (method, path) in self._exact:
            return True
        return path.startswith(self._prefixes) and any(
            path.startswith(prefix) and blocked in (None, method) for blocked, prefix in self._by_prefix
        )


def _readings(path: str) -> set[str]:
    """Every way in which an engine might read ``path``, which is forwarded as sent.

    As it stands or percent-decoded once or twice, with backslashes as slashes or not, and each of these with and
    without its doubled slashes, dot segments and last slash. If one reading is blocked the request is.
    """
    decoded = {path, unquote(path), unquote(unquote(path))}
    slashed = decoded | {reading.replace("\\", "/") for reading in decoded}
    return slashed | {posixpath.normpath("/" + reading.lstrip("/")) for reading in slashed}
