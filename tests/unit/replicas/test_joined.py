"""Backends that join and leave several replicas, and leases whose renewals only one of them receives."""

from __future__ import annotations

import pytest

from inference_engine_proxy_server.processes.roster import Command, Roster
from inference_engine_proxy_server.replicas.joined import JoinedAtReplicas, SharedRoster
from inference_engine_proxy_server.state.records import Record, Records
from support.clocked_pool import Clock

A, B = "http://a:1", "http://b:1"
LEASE = 15.0


class Replica:
    """One replica.

    Attributes:
        is_available: whether it reaches the server of shared state.
        silent: replicas that it does not hear of.
    """

    def __init__(self, clock: Clock, name: str, *entries: dict[str, object]) -> None:
        self.clock = clock
        self.name = name
        self.records = Records(lambda: 1e9 + clock.now)
        self.roster = Roster(entries)
        self.is_available = True
        self.silent: set[str] = set()
        self.shared = SharedRoster(self.records, name, clock)
        self.links = JoinedAtReplicas(
            self, self.records, lambda name: name in self.silent, self.roster, self.roster.carry_out, clock
        )

    def command(self, command: Command) -> None:
        self.roster.carry_out(command)
        self.shared.change(command)

    def announce(self, url: str = A, announcer: str = "x", seconds: float = LEASE, **more: object) -> None:
        entry = {"url": url, **more}
        self.command(Roster.announcing(entry, announcer, self.clock() + seconds))

    def pass_second(self) -> None:
        self.links.look()
        self.roster.end_leases(self.clock())

    @property
    def added(self) -> list[object]:
        return [entry["url"] for entry in self.roster.added.values()]

    @property
    def announced(self) -> list[object]:
        return [one.entry["url"] for one in self.roster.announced.values()]


def tell(*replicas: Replica) -> None:
    """Each tells all others, as far as they reach the server."""
    reachable = [one for one in replicas if one.is_available]
    for sender in reachable:
        sent = sender.records.to_send(100)
        for other in reachable:
            if other is not sender:
                other.records.merge([(name, Records.text_of(record)) for name, record in sent.items()])
        sender.records.sent(sent)


def pass_time(clock: Clock, seconds: int, *replicas: Replica) -> None:
    for _ in range(seconds):
        clock.now += 1
        for one in replicas:
            one.pass_second()
        tell(*replicas)


def two(clock: Clock) -> tuple[Replica, Replica]:
    one, other = Replica(clock, "one"), Replica(clock, "other")
    pass_time(clock, 20, one, other)  # leases are held for a while after the start
    return one, other


def test_what_is_added_changed_and_removed_at_one_replica_is_so_at_the_other() -> None:
    one, other = two(Clock())
    for sender in (one, other):
        sender.command(Roster.adding({"url": A}))
        sender.command(Roster.adding({"url": A, "weight": 2}))
        tell(one, other)
        assert one.roster.added == other.roster.added
        assert next(iter(one.roster.added.values()))["weight"] == 2
        sender.command(Roster.removing("http://A:1"))
        tell(one, other)
        assert one.added == other.added == []


def test_a_file_adds_what_no_replica_has_removed() -> None:
    clock = Clock()
    one = Replica(clock, "one")
    one.command(Roster.adding({"url": A}))
    one.command(Roster.removing(A))
    sent = one.records.to_send(100)
    other = Replica(clock, "other", {"url": A}, {"url": B})
    other.records.merge([(name, Records.text_of(record)) for name, record in sent.items()])
    other.records.has_read = True
    other.links.look()
    tell(one, other)
    assert one.added == other.added == [B]


def test_a_lease_that_one_replica_renews_lasts_at_both_and_few_renewals_are_told() -> None:
    one, other = two(clock := Clock())
    told = 0
    for at in range(60):
        if at % 5 == 0:
            one.announce()
            other.announce()  # the announcer knows both
            told += len(one.records.to_send(100)) + len(other.records.to_send(100))
            tell(one, other)
        pass_time(clock, 1, one, other)
        assert one.announced == other.announced == [A]
    assert told <= 24
    for _ in range(60):
        one.announce(seconds=LEASE)
        pass_time(clock, 1, one, other)
        assert other.announced == [A]
    pass_time(clock, 20, one, other)
    assert one.announced == other.announced == []


def test_a_lease_that_is_withdrawn_at_one_replica_ends_at_both_unless_another_announcer_has_one() -> None:
    one, other = two(Clock())
    one.announce(announcer="x")
    one.announce(announcer="y")
    tell(one, other)
    other.command(Roster.withdrawing(A, "x"))
    tell(one, other)
    assert one.announced == other.announced == [A]
    other.command(Roster.withdrawing(A, "y"))
    tell(one, other)
    assert one.announced == other.announced == []


def test_an_operator_removes_an_announced_backend_at_both() -> None:
    one, other = two(Clock())
    one.announce()
    tell(one, other)
    other.command(Roster.removing(A))
    tell(one, other)
    assert one.announced == other.announced == []


def test_no_lease_ends_while_the_server_is_away_and_all_have_time_to_return() -> None:
    one, other = two(clock := Clock())
    one.announce()
    other.announce(B)
    tell(one, other)
    one.is_available = other.is_available = False
    for _ in range(100):
        one.announce()  # only this announcer lives, and it reaches only this replica
        pass_time(clock, 1, one, other)
        assert sorted(map(str, other.announced)) == sorted(map(str, one.announced)) == [A, B]
    other.is_available = True
    pass_time(clock, 3, one, other)
    one.is_available = True
    for _ in range(40):
        one.announce()
        pass_time(clock, 1, one, other)
        assert A in other.announced
    assert other.announced == one.announced == [A]


def test_a_server_that_is_away_for_hours_holds_no_lease_any_more() -> None:
    one, other = two(clock := Clock())
    one.announce()
    tell(one, other)
    one.is_available = other.is_available = False
    pass_time(clock, 3500, one, other)
    assert other.announced == [A]
    pass_time(clock, 200, one, other)
    assert other.announced == []


def test_a_lease_outlives_the_silence_of_the_replica_that_renewed_it() -> None:
    one, other = two(clock := Clock())
    one.announce()
    tell(one, other)
    other.silent.add("one")
    pass_time(clock, 60, other)
    assert other.announced == [A]
    other.silent.clear()  # it has been forgotten, or is back
    pass_time(clock, 20, other)
    assert other.announced == []


@pytest.mark.parametrize("value", [[], {}, {"entry": {}}, {"entry": {"url": "ftp://a"}}, {"entry": 1, "ends_at": 2e9}])
def test_a_record_that_describes_no_backend_is_left_alone(value: object, caplog: pytest.LogCaptureFixture) -> None:
    one, _ = two(Clock())
    for name in ("added http://a:1", "lease http://a:1 x", "lease nonsense"):
        one.records.merge([(name, Records.text_of(Record(2e9, 2e9, value)))])
        assert "describes no backend that can be used" in caplog.text
        caplog.clear()
    assert one.added == one.announced == []
