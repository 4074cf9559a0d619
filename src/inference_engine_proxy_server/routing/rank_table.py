"""The ranks of many candidates, grouped by rank, so that the lowest ones are found without looking at all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["RankTable"]

_set = list.__setitem__


class RankTable(list[float]):
    """A list of ranks that knows which positions tie for the lowest one.

    Setting a rank costs about a microsecond, whatever the size. That is more than in a plain list, in which finding the
    lowest of 256 ranks takes several. Ranks are set one at a time, and the size never changes.

    Args:
        ranks: the initial ones, at least one.
    """

    __slots__ = ("_groups", "_places")

    def __init__(self, ranks: Iterable[float]) -> None:
        super().__init__(ranks)
        self._groups: dict[float, list[int]] = {}  # the positions that have a rank, in any order
        self._places = [0] * len(self)  # of each position in its group
        for at, rank in enumerate(self):
            group = self._groups.setdefault(rank, [])
            self._places[at] = len(group)
            group.append(at)

    def __setitem__(self, at: int, rank: float) -> None:  # type: ignore[override]  # no slices
        before = self[at]
        if rank == before:
            return
        _set(self, at, rank)
        groups, places = self._groups, self._places
        group = groups[before]
        last = group.pop()
        if last != at:  # it takes the place of the one that leaves
            place = places[last] = places[at]
            group[place] = last
        elif not group:
            del groups[before]
        joined = groups.get(rank)
        if joined is None:
            groups[rank] = [at]
            places[at] = 0
        else:
            places[at] = len(joined)
            joined.append(at)

    def tied(self) -> Sequence[int]:
        """The positions of the lowest rank, in any order. Valid until the next rank is set."""
        return self._groups[min(self._groups)]
