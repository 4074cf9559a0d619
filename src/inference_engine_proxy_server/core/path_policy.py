"""Which requests are not passed on: engines' own control endpoints that would change them for everybody."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from urllib.parse import unquote

from inference_engine_proxy_server.settings import PathRule

__all__ = ["PathPolicy"]

_UNUSUAL = re.compile(r"[%\\]|//|/\.|/$")


class PathPolicy:
    """The deny-list, ready for asking."""

    blocks: Callable[[str, str], bool]
    """Whether a request, by its method and path, is not passed on. What it says is kept for the usual few paths."""

    def __init__(self, rules: Iterable[PathRule]) -> None:
        rules = tuple(rules)
        self._exact = {(rule.method, rule.path) for rule in rules if not rule.is_prefix}
        self._by_prefix = [(rule.method, rule.path) for rule in rules if rule.is_prefix]
        self._prefixes = tuple(prefix for _, prefix in self._by_prefix)
        self.blocks = lru_cache(maxsize=256)(self._blocks)

    def _blocks(self, method: str, path: str) -> bool:
        """Decide it, by ``path`` as an engine might read it.

        That is percent-decoded, without doubled slashes, dot segments or a slash at its end; it is forwarded as sent.
        """
        if _UNUSUAL.search(path):
            decoded = unquote(unquote(path)).replace("\\", "/")
            path = posixpath.normpath("/" + decoded.lstrip("/"))
        if (None, path) in self._exact or (method, path) in self._exact:
            return True
        return path.startswith(self._prefixes) and any(
            path.startswith(prefix) and blocked in (None, method) for blocked, prefix in self._by_prefix
        )
