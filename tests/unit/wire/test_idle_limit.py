from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inference_engine_proxy_server.wire.idle_limit import IdleLimit, IdleReserve


def test_a_limit_rises_by_steps_as_long_as_the_reserve_has_connections() -> None:
    limit, other = IdleLimit(reserve := IdleReserve(70)), IdleLimit(reserve)
    assert (limit.most, limit.is_raised) == (32, False)
    assert limit.grow()
    assert (limit.most, limit.is_raised) == (64, True)
    assert other.grow()
    assert limit.grow()
    assert (limit.most, other.most, reserve.left) == (70, 64, 0)
    assert not other.grow()
    assert other.most == 64


def test_without_a_reserve_each_backend_keeps_the_usual_number() -> None:
    limit = IdleLimit(IdleReserve(0))
    assert not limit.grow()
    assert limit.most == 32


def test_a_limit_falls_slowly_when_fewer_connections_are_open() -> None:
    limit = IdleLimit(reserve := IdleReserve(68))
    while limit.grow():
        pass
    found = []
    for second in range(8):
        limit.shrink(open_connections=10, now=100.0 + second)
        found.append(limit.most)
    assert found == [68, 68, 68, 36, 36, 36, 32, 32]
    assert reserve.left == 68


@pytest.mark.parametrize(("open_connections", "most"), [(65, 96), (64, 64), (33, 64), (0, 64)])
def test_a_limit_stays_while_the_connections_need_it(open_connections: int, most: int) -> None:
    limit = IdleLimit(IdleReserve(64))
    limit.grow()
    limit.grow()
    limit.shrink(open_connections, now=100.0)
    assert limit.most == most


def test_a_closed_limit_gives_everything_back_and_takes_nothing() -> None:
    limit = IdleLimit(reserve := IdleReserve(64))
    limit.grow()
    limit.close()
    limit.close()
    assert reserve.left == 64
    assert not limit.grow()
    limit.shrink(0, now=100.0)
    assert (limit.most, reserve.left) == (32, 64)


@given(
    st.integers(0, 200),
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from("gsc"), st.integers(0, 300)), max_size=60),
)
def test_what_backends_keep_and_the_reserve_always_add_up(size: int, steps: list[tuple[int, str, int]]) -> None:
    reserve = IdleReserve(size)
    limits = [IdleLimit(reserve) for _ in range(3)]
    for now, (which, step, open_connections) in enumerate(steps):
        if step == "g":
            limits[which].grow()
        elif step == "s":
            limits[which].shrink(open_connections, now * 2.0)
        else:
            limits[which].close()
        assert reserve.left >= 0
        assert all(limit.most >= 32 for limit in limits)
        assert reserve.left + sum(limit.most - 32 for limit in limits) == size
