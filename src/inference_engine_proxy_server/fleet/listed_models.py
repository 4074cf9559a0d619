"""The list of models: those of live backends, and the operator's names for them, as far as a key permits."""

from __future__ import annotations

import difflib
import heapq
from collections.abc import Callable, Mapping, Sequence

from inference_engine_proxy_server.access.gate import Access
from inference_engine_proxy_server.backends.base import ModelEntry
from inference_engine_proxy_server.fleet.fleet import Fleet
from inference_engine_proxy_server.fleet.serving import names_of
from inference_engine_proxy_server.models.live_catalog import LiveCatalog

__all__ = ["ListedModels", "similar_names"]

_COMPARED = 128  # names
_COMPARED_LENGTH = 64  # characters
_MOST_LIKELY = 8
_MOST_SIMILAR = 3


class ListedModels:
    """The models of a fleet by their names.

    Args:
        fleet: the backends.
        catalog: the operator's names.
        is_served: whether a backend serves a model of a name, or has served it.
    """

    def __init__(self, fleet: Fleet, catalog: LiveCatalog, is_served: Callable[[str], bool]) -> None:
        self._fleet = fleet
        self._catalog = catalog
        self._is_served = is_served

    @property
    def default_name(self) -> str | None:
        """The configured name for requests that name no model; ``None`` if there is none."""
        return self._catalog.now.default_name

    def entries(self, access: Access | None) -> Sequence[ModelEntry]:
        """The list for a client with these permissions; ``None`` for all."""
        catalog = self._catalog.now
        entries = {
            name: entry
            for name, entry in self._reported().items()
            if not catalog.hides(name) and _permits(access, names_of(entry))
        }
        by_name = self._by_name()
        for alias, named in catalog.listed():
            entry = by_name.get(named.model)
            if entry is not None and _permits(access, (alias, *named.permitted_by)):
                entries[alias] = _under(alias, entry)
        return list(entries.values())

    def find(self, name: str, access: Access | None) -> ModelEntry | None:
        """The entry of ``name``, also of a hidden one; ``None`` if no live backend has it, or it is not permitted."""
        named = self._catalog.now.find(name, self._is_served)
        entry = self._by_name().get(name if named is None else named.model)
        if entry is None:
            return None
        if named is None or named.model == name:
            return entry if _permits(access, (name, *names_of(entry))) else None
        return _under(name, entry) if _permits(access, (name, *named.permitted_by)) else None

    def similar(self, name: str, access: Access | None) -> Sequence[str]:
        """Listed names that ``name`` may misspell, the most similar first."""
        return similar_names(name, [entry["id"] for entry in self.entries(access)])

    def _reported(self) -> Mapping[str, ModelEntry]:
        """The entries of live backends by id; of equal ids, the first."""
        found: dict[str, ModelEntry] = {}
        for backend in self._fleet.snapshot().live:
            for entry in backend.serving.models:
                found.setdefault(entry["id"], entry)
        return found

    def _by_name(self) -> Mapping[str, ModelEntry]:
        """The same entries by all names of their models; ids take precedence."""
        found = dict(self._reported())
        for entry in list(found.values()):
            for name in names_of(entry):
                found.setdefault(name, entry)
        return found


def similar_names(name: str, names: Sequence[str]) -> Sequence[str]:
    """The ``names`` that ``name`` may misspell, the most similar first, regardless of case.

    Exact comparisons take long, and clients choose names. Only those that share the most letters are compared.
    """
    by_lower = {one[:_COMPARED_LENGTH].lower(): one for one in names[:_COMPARED]}
    name = name[:_COMPARED_LENGTH].lower()
    matcher = difflib.SequenceMatcher(b=name)

    def shared_letters(other: str) -> float:
        matcher.set_seq1(other)
        return matcher.quick_ratio()

    likely = heapq.nlargest(_MOST_LIKELY, by_lower, key=shared_letters)
    return [by_lower[close] for close in difflib.get_close_matches(name, likely, n=_MOST_SIMILAR)]


def _permits(access: Access | None, names: Sequence[str]) -> bool:
    return access is None or any(map(access.permits, names))


def _under(name: str, entry: ModelEntry) -> ModelEntry:
    """``entry`` with another id. Its engine's aliases stay with the engine's own name."""
    return {key: value for key, value in entry.items() if key != "aliases"} | {"id": name}
