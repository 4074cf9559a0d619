"""Records: the later version counts, in whatever order members hear of it."""

from __future__ import annotations

import itertools
import json

import pytest

from inference_engine_proxy_server.state.records import KEPT_SECONDS, Record, Records
from support.clocked_pool import Clock


class Members:
    """Members that exchange their records with one server when a test says so."""

    def __init__(self, count: int) -> None:
        self.clock = Clock()
        self.server: dict[str, str] = {}
        self.all = [Records(self.clock, lambda name, _: name == "a") for _ in range(count)]
        self.changes: list[list[tuple[str, object]]] = [[] for _ in self.all]
        for records, changes in zip(self.all, self.changes, strict=True):
            records.subscribe(lambda name, record, changes=changes: changes.append((name, record.value)))  # type: ignore[misc]

    def meet(self, records: Records) -> None:
        """``records`` are exchanged with the server."""
        records.merge(list(self.server.items()), are_all=True)
        sent = records.to_send(100)
        for name, record in sent.items():
            stored = json.loads(self.server[name]) if name in self.server else [-1, -1]
            if list(record.version) > stored[:2]:
                self.server[name] = Records.text_of(record)
        records.sent(sent)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_the_last_command_counts_whoever_returns_first(order: tuple[int, ...]) -> None:
    members = Members(3)
    for at, records in enumerate(members.all):  # while none reaches the server
        records.write("drain a", at)
        members.clock.now += 1
    for number in (*order, *order):
        members.meet(members.all[number])
    assert [records.get("drain a") for records in members.all] == [Record(1002.0, 1002.0, 2)] * 3
    assert [changes[-1:] for changes in members.changes] == [[("drain a", 2)]] * 2 + [[]]


def test_a_command_is_later_than_what_its_member_has_seen_even_if_its_clock_is_behind() -> None:
    members = Members(2)
    one, other = members.all
    one.set_clock(2000.0)
    one.write("a", 1)
    members.meet(one)
    members.meet(other)
    other.write("a", 2)
    members.meet(other)
    members.meet(one)
    assert [records.get("a").value for records in members.all if records.get("a")] == [2, 2]  # type: ignore[union-attr]


def test_a_server_without_its_data_gets_them_back() -> None:
    members = Members(2)
    one, other = members.all
    one.write("a", 1)
    members.meet(one)
    members.meet(other)
    members.server.clear()
    assert not other.to_send(100)
    members.meet(other)
    assert json.loads(members.server["a"])[2] == 1
    members.meet(one)
    assert members.changes == [[], [("a", 1)]]


def test_own_commands_and_unchanged_records_are_no_changes() -> None:
    members = Members(2)
    one, other = members.all
    one.write("a", 1)
    for records in (one, other, one, other):
        members.meet(records)
    assert members.changes == [[], [("a", 1)]]


def test_what_is_written_meanwhile_is_sent_later() -> None:
    records = Records(Clock())
    records.write("a", 1)
    sent = records.to_send(100)
    records.write("a", 2)
    assert records.unsent.is_set()
    records.sent(sent)
    assert records.to_send(100)["a"].value == 2


def test_anything_replaces_what_was_so_from_the_beginning() -> None:
    members = Members(2)
    one, other = members.all
    one.write("a", None)
    members.meet(one)
    other.write("a", "of a file", at=0.0)
    members.meet(other)
    record = other.get("a")
    assert record is not None
    assert record.value is None
    other.write("a", "of a file", at=0.0)
    assert not other.to_send(100)


@pytest.mark.parametrize(("name", "kept_seconds"), [("a", KEPT_SECONDS), ("b", 7200.0)])
def test_a_record_is_forgotten_when_no_member_has_needed_it_for_long(name: str, kept_seconds: float) -> None:
    members = Members(2)
    one, other = members.all

    def pass_time(seconds: float, *, is_needed: bool) -> bool:
        for _ in range(10):
            members.clock.now += seconds / 10
            if is_needed:
                other.need(name)
            members.meet(other)
            members.meet(one)
            for records in members.all:
                for forgotten in records.forget_old():
                    members.server.pop(forgotten, None)
        return name in members.server and one.get(name) is not None

    one.write(name, 1)
    assert pass_time(4 * kept_seconds, is_needed=True)
    assert pass_time(0.4 * kept_seconds, is_needed=False)
    assert not pass_time(kept_seconds, is_needed=False)
    assert members.changes == [[], [(name, 1)]]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '["a", 1, 2]', "[1, 2, 3, 4]", "\N{REPLACEMENT CHARACTER}"])
def test_a_record_that_cannot_be_read_is_left_alone(text: str, caplog: pytest.LogCaptureFixture) -> None:
    records = Records(Clock())
    records.merge([("a", text), ("b", "[1, 1, true]")])
    assert records.get("a") is None
    assert records.get("b") == Record(1.0, 1.0, True)
    assert "'a' cannot be read" in caplog.text
