"""Which kinds of engines lack a path, learned from their replies.

Backends are of the same kind if they have the same engine, and list the same models by the same owner. A path that
every kind lacks is not remembered: the reply says so each time.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from inference_engine_proxy_server.fleet.backend import Backend

__all__ = ["MISSING_STATUSES", "PathTable", "kind_of"]

MISSING_STATUSES = frozenset({404, 405, 501})
"""Statuses by which an engine says that it lacks a path, or the model that the request means."""

_PATHS = 1024
_NOTHING: frozenset[Hashable] = frozenset()


def kind_of(backend: Backend) -> Hashable:
    """The kind of the engine of ``backend``."""
    serving = backend.serving
    return backend.engine, serving.model_ids, frozenset(str(entry.get("owned_by")) for entry in serving.models)


class PathTable:
    """The kinds that lack a path, for the paths learned last."""

    def __init__(self) -> None:
        self._lacking: dict[tuple[str, str], frozenset[Hashable]] = {}

    def __len__(self) -> int:
        return len(self._lacking)

    def lacking(self, method: str, path: str) -> frozenset[Hashable]:
        """The kinds that lack ``path``."""
        return self._lacking.get((method, path), _NOTHING)

    def learn(self, method: str, path: str, backends: Iterable[Backend]) -> None:
        """``backends`` lack ``path``, and another kind has it."""
        lacking = self._lacking.pop((method, path), _NOTHING)
        self._lacking[method, path] = lacking.union(map(kind_of, backends))
        if len(self._lacking) > _PATHS:
            del self._lacking[next(iter(self._lacking))]

    def forget(self) -> None:
        """Forget everything: the fleet changed, and an engine may have another configuration than before."""
        self._lacking.clear()
