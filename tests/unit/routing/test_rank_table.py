from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from inference_engine_proxy_server.routing.rank_table import RankTable

RANKS = st.sampled_from([0.0, 1.0, 1.5, 2.0, 1e9, math.inf])


def lowest(ranks: list[float]) -> set[int]:
    """The positions of the lowest rank, by comparing all."""
    return {at for at, rank in enumerate(ranks) if rank == min(ranks)}


@given(
    ranks=st.lists(RANKS, min_size=1, max_size=12),
    changes=st.lists(st.tuples(st.integers(0, 11), RANKS), max_size=60),
)
def test_the_lowest_ranks_are_those_that_a_comparison_of_all_finds(
    ranks: list[float], changes: list[tuple[int, float]]
) -> None:
    table = RankTable(ranks)
    for at, rank in [(at % len(ranks), rank) for at, rank in changes]:
        assert set(table.tied()) == lowest(ranks)
        table[at] = ranks[at] = rank
        assert table == ranks
        assert len(table.tied()) == len(lowest(ranks))
    assert set(table.tied()) == lowest(ranks)


def test_the_table_keeps_nothing_of_ranks_that_nobody_has() -> None:
    table = RankTable([0.0] * 3)
    for rank in range(1000):
        table[1] = rank / 7
    assert len(table._groups) == 2  # noqa: SLF001 - a leak would show nowhere else
