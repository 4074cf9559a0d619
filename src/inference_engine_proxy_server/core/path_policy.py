"""Which requests are not passed on: engines' own control endpoints that would change them for everybody."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable
from urllib.parse import unquote

from inference_engine_proxy_server.settings import PathRule

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
        """Whether a request is not passed on.

        ``path`` is read as an engine might read it: percent-decoded, without doubled slashes, dot segments or a
        slash at its end, whatever it is forwarded as.
        """
        if _UNUSUAL.search(path):
            decoded = unquote(unquote(path)).replace("\\", "/")
            path = posixpath.normpath("/" + decoded.lstrip("/"))
        if (None, path) in self._exact or (method, path) in self._exact:
            return True
        return path.startswith(self._prefixes) and any(
            path.startswith(prefix) and blocked in (None, method) for blocked, prefix in self._by_prefix
        )
