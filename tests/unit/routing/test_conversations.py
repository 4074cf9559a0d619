"""Among equally loaded backends, a conversation stays where its previous turn was. Load always comes first."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

import pytest

from inference_engine_proxy_server.dispatch.leases import Lease
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.requests.content import read_content
from inference_engine_proxy_server.requests.turns import turn_of
from inference_engine_proxy_server.routing.requirements import Requirements
from support.clocked_pool import LOADING, Clock, make_pool, pass_time, publish, ready, ready_pool, suspend
from support.pools import Pool


@pytest.fixture
def clock() -> Clock:
    return Clock()


def turn(number: int, name: str = "a", session: str | None = None, model: str = "m") -> Requirements:
    """A request of the conversation ``name``; it has ``number`` questions."""
    messages = [{"role": "user", "content": f"{name} 1"}]
    for at in range(2, number + 1):
        messages += [{"role": "assistant", "content": "Well."}, {"role": "user", "content": f"{name} {at}"}]
    return asked(messages, model, b"" if session is None else b"X-Session-Id: %b\r\n" % session.encode())


def asked(messages: list[dict[str, str]], model: str = "m", fields: bytes = b"") -> Requirements:
    raw = read_content(b"/", json.dumps({"messages": messages}).encode()).raw_messages
    key, turn = turn_of(model, raw, fields)
    return Requirements(model, turn_key=key, turn=turn)


def lease(pool: Pool, requirements: Requirements, excluded: Sequence[Backend] = ()) -> Lease:
    found = pool.lease(requirements, excluded)
    assert found is not None
    return found


def served(pool: Pool, requirements: Requirements) -> Backend:
    """The backend of a request that ends at once."""
    found = lease(pool, requirements)
    found.close()
    return found.backend


def test_every_turn_after_the_first_stays_while_backends_tie(clock: Clock) -> None:
    pool = ready_pool(clock, 4)
    homes = {name: {served(pool, turn(number, name)) for number in range(1, 11)} for name in "abcdefgh"}
    assert {len(home) for home in homes.values()} == {1}
    assert len(set.union(*homes.values())) > 1  # new conversations are spread
    assert pool.placement.conversations.kept == 8 * 9


def test_conversation_moves_to_a_backend_with_fewer_requests(clock: Clock) -> None:
    pool = ready_pool(clock, 2)
    home = served(pool, turn(1))
    other = next(one for one in pool.backends if one is not home)
    busy = pool.occupy(home)
    assert served(pool, turn(2)) is other
    busy.close()
    assert served(pool, turn(3)) is other  # it stays where it went last
    assert pool.placement.conversations.kept == 1


def test_lone_questions_are_spread_at_random(clock: Clock) -> None:
    pool = ready_pool(clock, 2)
    shares = Counter(served(pool, turn(1)).url for _ in range(200))
    assert min(shares.values()) > 50  # 100 expected; that is seven standard deviations away
    assert pool.placement.conversations.kept == 0


@pytest.mark.parametrize("number", [1, 5])
def test_burst_of_one_conversation_is_spread_evenly(clock: Clock, number: int) -> None:
    pool = ready_pool(clock, 4)
    served(pool, turn(number - 1 or 1))
    leases = [lease(pool, turn(number)) for _ in range(64)]
    assert set(Counter(one.backend.url for one in leases).values()) == {16}


def test_burst_fills_the_idle_backend_first(clock: Clock) -> None:
    pool = ready_pool(clock, 4)
    home = served(pool, turn(1))
    idle = next(one for one in pool.backends if one is not home)
    for index, backend in enumerate(pool.backends):
        publish(pool, index, ready(processing=0 if backend is idle else 3))
    leases = [lease(pool, turn(2, session="s")) for _ in range(7)]
    assert Counter(one.backend.url for one in leases[:3]) == {idle.url: 3}
    assert set(Counter(one.backend.url for one in leases[3:]).values()) == {1}
    assert leases[3].backend in pool.backends


def test_repeated_question_goes_where_the_engine_has_read_it(clock: Clock) -> None:
    pool = ready_pool(clock, 4)
    home = served(pool, turn(2))
    assert {served(pool, turn(2)) for _ in range(10)} == {home}


def test_branch_of_a_conversation_begins_where_its_beginning_was(clock: Clock) -> None:
    pool = ready_pool(clock, 4)
    home = served(pool, turn(1))
    held = [pool.occupy(home)]
    assert served(pool, turn(2)) is not home
    held[0].close()
    edited = [("user", "a 1"), ("assistant", "Well."), ("user", "edited")]
    assert served(pool, asked([{"role": role, "content": content} for role, content in edited])) is home


def test_session_is_kept_although_its_messages_were_rewritten(clock: Clock) -> None:
    pool = ready_pool(clock, 4)
    home = served(pool, turn(2, "first", session="s"))
    for number in range(10):
        assert served(pool, turn(3, f"rewritten {number}", session="s")) is home
    assert len({served(pool, turn(3, f"other {number}", session=f"other {number}")) for number in range(40)}) == 4


def test_messages_say_more_than_the_session(clock: Clock) -> None:
    pool = ready_pool(clock, 2)
    one = served(pool, turn(2, "agent", session="s"))
    held = pool.occupy(one)
    other = served(pool, turn(2, "its helper", session="s"))
    held.close()
    assert other is not one
    assert served(pool, turn(3, "agent", session="s")) is one


def test_same_messages_for_another_model_are_another_conversation(clock: Clock) -> None:
    pool = make_pool(clock, 4)
    for index in range(4):
        publish(pool, index, ready(models=["m", "n"]))
    homes = {model: {served(pool, turn(number, str(at), model=model)) for number in (1, 2)}
             for at in range(10) for model in ("m", "n")}  # fmt: skip
    assert {len(home) for home in homes.values()} == {1}


def test_drained_backend_is_left_and_found_again(clock: Clock) -> None:
    pool = ready_pool(clock, 3)
    home = served(pool, turn(1))
    pool.set_draining(home)
    moved = lease(pool, turn(2)).backend
    assert moved is not home
    pool.set_draining(home, is_draining=False)
    assert served(pool, turn(2)) is home  # the other one has a request


@pytest.mark.parametrize("failure", ["down", "suspect", "excluded"])
def test_backend_that_fails_gets_no_turn(clock: Clock, failure: str) -> None:
    pool = ready_pool(clock, 3)
    home = served(pool, turn(1))
    at = pool.backends.index(home)
    if failure == "down":
        publish(pool, at, LOADING)
    elif failure == "suspect":
        suspend(pool, at)
    moved = lease(pool, turn(2), [home] if failure == "excluded" else ()).backend
    assert moved is not home
    pass_time(pool, clock, 1)


def test_last_choice_is_not_preferred(clock: Clock) -> None:
    pool = ready_pool(clock, 2)
    home = served(pool, turn(1))
    clock.now += 2 * 3.0 + 0.1
    for index, backend in enumerate(pool.backends):
        publish(pool, index, ready(processing=None if backend is home else 0))
    assert home.is_last_choice
    assert served(pool, turn(2)) is not home


def test_conversation_outlives_a_change_of_the_fleet(clock: Clock) -> None:
    pool = ready_pool(clock, 3)
    home = served(pool, turn(1))
    gone = next(one for one in pool.backends if one is not home)
    pool.replace([one for one in pool.backends if one is not gone])
    assert served(pool, turn(2)) is home
    pool.replace([one for one in pool.backends if one is not home])
    assert served(pool, turn(3)) is not home


def test_first_turns_are_placed_by_weight_and_later_turns_stay(clock: Clock) -> None:
    pool = make_pool(clock, 2, weights=[3, 1])
    for index in range(2):
        publish(pool, index, ready())
    homes = [[served(pool, turn(number, f"{name}")) for number in (1, 2, 3)] for name in range(200)]
    assert all(len(set(turns)) == 1 for turns in homes)
    shares = Counter(first.url for first, *_ in homes)
    assert 120 < shares[pool.backends[0].url] < 180  # 150 expected; that is five standard deviations away


def test_full_backends_give_no_turn(clock: Clock) -> None:
    pool = ready_pool(clock, 2, capacity=1)
    held = [lease(pool, turn(1)), lease(pool, turn(1, "b"))]
    assert pool.lease(turn(2)) is None
    held[0].close()
    assert served(pool, turn(2)) is held[0].backend
