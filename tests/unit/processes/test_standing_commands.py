from __future__ import annotations

import pytest

from inference_engine_proxy_server.processes.channel import DRAIN, MOVE, ROSTER, UNDRAIN
from inference_engine_proxy_server.processes.process_context import SoleProcess
from inference_engine_proxy_server.processes.roster import Entry, Roster
from inference_engine_proxy_server.processes.standing_commands import StandingCommands


def test_drained_and_joined_backends_reach_a_program_that_starts_later() -> None:
    before = StandingCommands()
    before.carry_out(DRAIN, "http://a:1")
    before.carry_out(MOVE, "http://b:1")
    before.carry_out(DRAIN, "http://c:1")
    before.carry_out(UNDRAIN, "http://c:1")
    before.carry_out(ROSTER, Roster.adding({"url": "http://d:1", "weight": 2}))
    before.carry_out(ROSTER, Roster.announcing({"url": "http://e:1"}, "me", 12.5))

    after = StandingCommands(Roster([{"url": "http://old:1"}]))
    after.adopt(before.as_json())

    assert after.drained_urls == {"http://a:1", "http://b:1"}
    assert list(after.roster.added.values()) == [{"url": "http://d:1", "weight": 2}]
    [announced] = after.roster.announced.values()
    assert (announced.entry, announced.leases) == ({"url": "http://e:1"}, {"me": 12.5})
    assert after.as_json() == before.as_json()


def test_a_backend_that_has_left_is_not_drained_when_it_joins_again() -> None:
    commands = StandingCommands()
    commands.carry_out(DRAIN, "http://a:1")
    commands.forget("http://a:1")
    assert not commands.drained_urls


def test_after_a_handover_only_the_new_program_saves_what_joined() -> None:
    saved: list[list[Entry]] = []
    roster = Roster([], lambda entries: saved.append(list(entries)))
    roster.carry_out(Roster.adding({"url": "http://a:1"}))
    roster.stop_saving()
    roster.carry_out(Roster.adding({"url": "http://b:1"}))
    assert saved == [[{"url": "http://a:1"}]]


@pytest.mark.parametrize(
    ("is_draining", "moves", "word"), [(True, False, DRAIN), (True, True, MOVE), (False, False, UNDRAIN)]
)
def test_a_single_process_passes_commands_on_to_the_program_that_replaces_it(
    is_draining: bool, moves: bool, word: str
) -> None:
    process, passed = SoleProcess(), []
    process.pass_on = lambda *message: passed.append(message)

    process.order("http://a:1", is_draining=is_draining, moves=moves)
    process.change_roster(Roster.adding({"url": "http://b:1"}))

    assert passed == [(word, "http://a:1"), (ROSTER, Roster.adding({"url": "http://b:1"}))]
    assert process.drained_urls == ({"http://a:1"} if is_draining else set())
    assert list(process.roster.added.values()) == [{"url": "http://b:1"}]
    process.announce_backends([], ["http://a:1"])
    assert not process.drained_urls
