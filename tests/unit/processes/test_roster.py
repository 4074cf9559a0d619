"""The roster: the same commands in the same order lead to the same backends in every process."""

from __future__ import annotations

import json
from collections.abc import Sequence

from inference_engine_proxy_server.processes.roster import Entry, Roster

A, B = "http://a:1", "http://b:1"


def added(roster: Roster) -> list[str]:
    return [entry["url"] for entry in roster.added.values()]


def announced(roster: Roster) -> dict[str, float]:
    return {one.entry["url"]: one.ends_at for one in roster.announced.values()}


def test_what_one_process_carries_out_another_one_follows() -> None:
    first, second = Roster(), Roster()
    for command in (
        Roster.adding({"url": A}),
        Roster.announcing({"url": B}, "x", 5.0),
        Roster.adding({"url": A, "weight": 2}),
        Roster.removing(A),
        Roster.adding({"url": A, "tier": 2}),
    ):
        second.follow(first.carry_out(command))
    assert first.added == second.added == {("http", "a", 1, ""): {"url": A, "tier": 2}}
    assert announced(first) == announced(second) == {B: 5.0}


def test_two_spellings_of_a_server_are_one_backend() -> None:
    roster = Roster([{"url": "http://a"}])
    roster.carry_out(Roster.adding({"url": "http://a:80", "weight": 2}))
    assert added(roster) == ["http://a:80"]
    roster.carry_out(Roster.removing("http://a"))
    assert added(roster) == []


def test_only_changes_of_added_backends_are_saved() -> None:
    saved: list[Sequence[Entry]] = []
    roster = Roster(save=saved.append)
    roster.carry_out(Roster.announcing({"url": B}, "", 5.0))
    roster.carry_out(Roster.removing(B))
    assert saved == []
    roster.carry_out(Roster.adding({"url": A}))
    roster.carry_out(Roster.removing(A))
    assert saved == [[{"url": A}], []]


def test_a_change_that_cannot_be_saved_is_in_force_and_every_copy_knows_why() -> None:
    def fail(_: Sequence[Entry]) -> None:
        raise OSError(28, "No space left on device")

    roster, copy = Roster(save=fail), Roster()
    copy.follow(roster.carry_out(Roster.adding({"url": A})))
    assert added(copy) == [A]
    assert copy.save_problem == roster.save_problem == roster.copy().save_problem == "No space left on device"


def test_a_backend_stays_until_the_last_lease_ends() -> None:
    roster = Roster()
    roster.carry_out(Roster.announcing({"url": A}, "old", 5.0))
    roster.carry_out(Roster.announcing({"url": A}, "new", 9.0))
    assert (roster.next_end(), announced(roster)) == (5.0, {A: 9.0})
    assert roster.end_leases(5.0) == []
    assert roster.next_end() == 9.0
    assert roster.end_leases(9.0) == [{"url": A}]
    assert (roster.next_end(), announced(roster)) == (None, {})


def test_an_announcer_ends_only_its_own_lease() -> None:
    roster = Roster()
    for name in ("old", "new"):
        roster.carry_out(Roster.announcing({"url": A}, name, 5.0))
    roster.carry_out(Roster.withdrawing(A, "old"))
    roster.carry_out(Roster.withdrawing(B, "old"))
    assert announced(roster) == {A: 5.0}
    roster.carry_out(Roster.withdrawing(A, "new"))
    assert announced(roster) == {}


def test_prolonged_leases_end_later() -> None:
    roster = Roster()
    roster.carry_out(Roster.announcing({"url": A}, "", 5.0))
    roster.prolong_leases(10.0)
    assert roster.end_leases(14.9) == []
    assert roster.end_leases(15.0) == [{"url": A}]


def test_a_copy_has_the_same_backends_and_is_independent() -> None:
    roster = Roster([{"url": A}])
    roster.carry_out(Roster.announcing({"url": B}, "", 5.0))
    copy = roster.copy()
    roster.carry_out(Roster.removing(B))
    assert (added(copy), announced(copy)) == ([A], {B: 5.0})


def test_subscribers_hear_of_every_command() -> None:
    heard: list[int] = []
    roster = Roster()
    roster.subscribe(lambda: heard.append(len(roster.added)))
    roster.follow(Roster().carry_out(Roster.adding({"url": A})))
    roster.carry_out(Roster.removing(A))
    assert heard == [1, 0]


def test_commands_are_one_line_of_text() -> None:
    command = Roster.adding({"url": A, "name": "ü\n"})
    assert "\n" not in command
    assert command.isascii()
    assert json.loads(command)["entry"]["name"] == "ü\n"
