"""Drains of several replicas: who carries out what, and when a drain ends."""

from __future__ import annotations

from inference_engine_proxy_server.fleet.membership import Membership
from inference_engine_proxy_server.replicas.drains import DrainsOfReplicas, SharedDrains
from inference_engine_proxy_server.state.records import Records
from support.clocked_pool import Clock, make_pool


class Replica:
    """One replica with two backends, whose messages a test delivers."""

    def __init__(self, clock: Clock) -> None:
        self.pool = make_pool(clock, 2)
        self.records = Records(clock)
        self.membership = Membership(self.pool.fleet, (), lambda *_: None)
        self.moved = 0
        self.drains = SharedDrains(self.records)
        self.links = DrainsOfReplicas(self.records, self.pool.fleet, self._carry_out)

    def _carry_out(self, url: str, *, is_draining: bool, moves: bool) -> None:
        self.moved += moves
        self.membership.obey(url, is_draining=is_draining, moves=moves)

    def command(self, url: str, *, is_draining: bool, moves: bool = False) -> None:
        self.membership.obey(url, is_draining=is_draining, moves=moves)
        self.drains.command(url, is_draining=is_draining, moves=moves)

    @property
    def drained(self) -> list[bool]:
        return [backend.is_draining for backend in self.pool.fleet.backends]


def tell(sender: Replica, *others: Replica) -> None:
    sent = sender.records.to_send(100)
    for other in others:
        other.records.merge([(name, Records.text_of(record)) for name, record in sent.items()])
    sender.records.sent(sent)


def two(clock: Clock) -> tuple[Replica, Replica, str]:
    one, other = Replica(clock), Replica(clock)
    return one, other, one.pool.backends[0].url


def test_a_drain_an_undrain_and_a_move_are_repeated() -> None:
    one, other, url = two(clock := Clock())
    for at, (is_draining, moves) in enumerate([(True, False), (True, True), (False, False)]):
        clock.now += 1
        one.command(url, is_draining=is_draining, moves=moves)
        tell(one, other)
        assert (other.drained, other.moved) == ([is_draining, False], int(at > 0))
    assert not other.records.to_send(100)


def test_a_backend_that_joins_later_is_drained_then() -> None:
    one, other, url = two(Clock())
    first, second = other.pool.backends
    other.pool.fleet.replace([second])
    one.command(url, is_draining=True)
    tell(one, other)
    first.is_draining = False
    other.pool.fleet.replace([second, first])
    assert other.drained == [False, True]

    other.pool.fleet.replace([second])
    tell(other, one)
    first.is_draining = False  # as a new backend with its URL is
    other.pool.fleet.replace([second, first])
    assert other.drained == [False, False]


def test_a_drain_holds_until_the_backend_has_left_every_replica() -> None:
    one, other, url = two(clock := Clock())
    one.command(url, is_draining=True)
    tell(one, other)
    for replica in (one, other):
        clock.now += 1
        second = replica.pool.backends[1]
        replica.pool.fleet.replace([second])
        tell(replica, one if replica is other else other)
        tell(other, one)
        record = one.records.get(f"drain {url}")
        assert record is not None
        assert (record.value is None) is (replica is other)


def test_a_drain_that_is_needed_is_not_forgotten() -> None:
    one, _, url = two(clock := Clock())
    one.command(url, is_draining=True)
    one.records.sent(one.records.to_send(100))
    one.links.look()
    assert not one.records.to_send(100)
    clock.now += 7200
    one.links.look()
    assert set(one.records.to_send(100)) == {f"drain {url}"}
