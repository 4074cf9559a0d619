"""The supervisor learns who is in the fleet, and new workers drain what operators have drained."""

from __future__ import annotations

from collections.abc import Collection

from inference_engine_proxy_server.fleet.membership import Membership
from support.clocked_pool import Clock, make_pool


def test_all_are_told_at_the_start_and_changes_after_that() -> None:
    told: list[tuple[set[str], set[str]]] = []

    def tell(joined: Collection[str], left: Collection[str]) -> None:
        told.append((set(joined), set(left)))

    pool = make_pool(Clock(), 3)
    first, second, third = pool.backends
    pool.fleet.replace([first, second])
    Membership(pool.fleet, (), tell)
    pool.fleet.replace([second, third])
    assert told == [({first.url, second.url}, set()), ({third.url}, {first.url})]


def test_drained_backend_is_drained_when_it_joins_for_the_first_time() -> None:
    pool = make_pool(Clock(), 2)
    first, second = pool.backends
    pool.fleet.replace([first])
    Membership(pool.fleet, [first.url, second.url], lambda *_: None)
    assert first.is_draining

    second.is_draining = False
    pool.fleet.replace([first, second])
    assert second.is_draining

    second.is_draining = False  # as a new backend with its URL is
    pool.fleet.replace([first])
    second.is_draining = False
    pool.fleet.replace([first, second])
    assert not second.is_draining
