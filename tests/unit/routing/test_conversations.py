"""Among equally loaded backends, a conversation stays where its previous turn was. Load always comes first."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

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


def others_use(pool: Pool, clock: Clock, foreign: Sequence[int], seconds: float = 3.0) -> None:
    """Time passes; then every backend reports so many requests of other replicas."""
    clock.now += seconds
    for index, count in enumerate(foreign):
        publish(pool, index, ready(processing=count + pool.backends[index].load.leases))


def few_shot(number: int) -> Requirements:
    """A prompt that begins with the same examples as all others, and is no longer than the others."""
    examples = [{"role": "user", "content": "1 + 1"}, {"role": "assistant", "content": "2"}]
    return asked([*examples, {"role": "user", "content": f"{number:03} + {number:03}"}])


def test_replicas_choose_the_same_backend_for_a_conversation_that_they_do_not_know(clock: Clock) -> None:
    homes = {
        name: {served(ready_pool(clock, 4), turn(number, name)).url for number in range(2, 9)} for name in "abcdefgh"
    }

    assert {len(home) for home in homes.values()} == {1}
    assert len(set.union(*homes.values())) > 1


def test_turns_that_come_to_two_replicas_in_turn_stay_on_one_backend(clock: Clock) -> None:
    for name in "abcdefgh":
        replicas = [ready_pool(clock, 4), ready_pool(clock, 4)]
        urls = [served(replicas[number % 2], turn(number, name)).url for number in range(1, 11)]
        assert len(set(urls[2:])) == 1, "each of them knows only every other turn"


def test_home_of_an_unknown_conversation_is_a_matter_of_weight(clock: Clock) -> None:
    shares = Counter[str]()
    pool = make_pool(clock, 2, weights=[3, 1])
    for index in range(2):
        publish(pool, index, ready())
    for name in range(200):
        shares[served(pool, turn(2, f"{name}")).url] += 1
    assert 120 < shares[pool.backends[0].url] < 180  # 150 expected; that is five standard deviations away


def test_prompts_with_the_same_examples_are_no_conversation(clock: Clock) -> None:
    pool = ready_pool(clock, 4)
    shares = Counter(served(pool, few_shot(number)).url for number in range(200))
    assert len(shares) == 4
    assert max(shares.values()) < 100  # 50 expected; that is eight standard deviations away


def test_previous_turn_through_another_replica_does_not_keep_the_next_one_away(clock: Clock) -> None:
    pool = ready_pool(clock, 4)
    home = served(pool, turn(2))
    others_use(pool, clock, [int(one is home) for one in pool.backends])
    clock.now += 1.0
    assert served(pool, turn(4)) is home
    others_use(pool, clock, [2 * int(one is home) for one in pool.backends], seconds=2.0)
    assert served(pool, turn(6)) is not home


def test_report_of_this_moment_is_believed(clock: Clock) -> None:
    pool = ready_pool(clock, 4)
    home = served(pool, turn(2))
    others_use(pool, clock, [int(one is home) for one in pool.backends])
    assert served(pool, turn(4)) is not home


def test_loads_that_reports_cannot_tell_apart_count_as_equal(clock: Clock) -> None:
    pool = ready_pool(clock, 2)
    home = served(pool, turn(2))
    at = pool.backends.index(home)
    for foreign in ([1, 5], [4, 2], [2, 5], [5, 1], [2, 4]):
        others_use(pool, clock, foreign)
    others_use(pool, clock, [5, 3] if at == 0 else [3, 5])
    assert served(pool, turn(4)) is not home, "a new report is exact"
    clock.now += 2.0
    assert served(pool, turn(6)) is home


def test_replicas_that_follow_are_counted_before_they_are_reported(clock: Clock) -> None:
    pool = ready_pool(clock, 2)
    first, second = pool.backends
    for _ in range(20):  # whenever this replica has a request, three others have one there, too
        held = pool.occupy(first)
        others_use(pool, clock, [3, 0])
        held.close()
        others_use(pool, clock, [0, 0])
    others_use(pool, clock, [0, 2])
    leases = [lease(pool, turn(1, str(number))) for number in range(2)]
    assert [one.backend for one in leases] == [first, second], "without the others, the first one would have 1"


def test_expected_requests_of_others_fill_no_backend(clock: Clock) -> None:
    pool = ready_pool(clock, 1, capacity=4)
    backend = pool.backends[0]
    for foreign in (3, 0) * 20:
        held = [pool.occupy(backend)] if foreign else []
        clock.now += 3.0
        publish(pool, 0, replace(ready(processing=foreign + len(held)), capacity=4))
        for one in held:
            one.close()
    assert len([lease(pool, turn(1, str(number))) for number in range(4)]) == 4
