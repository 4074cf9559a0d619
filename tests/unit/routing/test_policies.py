"""Each policy chooses by its documented rule."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
import pytest

from inference_engine_proxy_server.fleet.backend_load import BackendLoad
from inference_engine_proxy_server.requests.conversation import key_of
from inference_engine_proxy_server.requests.prompt import Prompt, read_prompt
from inference_engine_proxy_server.requests.token_sizes import TokenSizes
from inference_engine_proxy_server.routing.choice import PromptView
from inference_engine_proxy_server.routing.expected_time.pending_work import PendingWork, compare
from inference_engine_proxy_server.routing.expected_time.scoring import expected_time
from inference_engine_proxy_server.routing.policies import (
    POLICIES,
    PromptPolicy,
    power_of_two,
    rendezvous,
    round_robin,
)

_PATH = "/v1/chat/completions"


def _work() -> PendingWork:
    work = PendingWork()
    for _ in range(3):
        work.speeds.note_reading(1000, 0.1)
    compare([work], 0.0)
    return work


@dataclass
class OneOf:
    number: int
    work: PendingWork = field(default_factory=_work)
    load: BackendLoad = field(default_factory=BackendLoad)
    cost: float = 1.0
    tier_seconds: float = 0.0

    @property
    def url_key(self) -> int:
        return key_of(b"http://backend-%d" % self.number)


def a_fleet(count: int = 4) -> list[OneOf]:
    return [OneOf(number) for number in range(count)]


def send(one: OneOf, tokens: float, now: float = 0.0) -> None:
    one.load.leases += 1
    one.work.send(tokens, now, is_streamed=True)


def a_prompt(*contents: str, session: str = "") -> Prompt:
    roles = ("system", *("user", "assistant") * len(contents))
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    fields = f"x-session-id: {session}\r\n".encode() if session else b""
    return read_prompt(
        _PATH.encode(), _PATH, fields, msgspec.json.encode({"messages": messages, "stream": True}), TokenSizes()
    )


def asked(prompt: Prompt, held: Mapping[int, int] | None = None, goes_on: float = 0.0) -> PromptView:
    return PromptView(prompt, held or {}, -1, goes_on)


QUESTION = a_prompt("s" * 4000, "q" * 4000)


def test_prompt_goes_where_least_is_read_before_it() -> None:
    fleet = a_fleet(3)
    send(fleet[0], 9000)
    send(fleet[1], 100)
    send(fleet[2], 9000)

    assert expected_time(fleet, asked(QUESTION), 0.0).at == 1


def test_prompt_goes_where_it_is_held_until_another_would_be_faster() -> None:
    fleet = a_fleet(2)
    held = {1: QUESTION.size}
    assert expected_time(fleet, asked(QUESTION, held), 0.0).at == 1

    send(fleet[1], 20_000)

    assert expected_time(fleet, asked(QUESTION, held), 0.0).at == 0


def test_full_backend_costs_the_time_until_a_slot_is_free() -> None:
    fleet = a_fleet(2)
    for one in fleet:
        one.load.slots = 1
    fleet[0].load.leases = 1

    assert expected_time(fleet, asked(QUESTION), 0.0).at == 1


def test_full_memory_is_avoided() -> None:
    fleet = a_fleet(2)
    fleet[0].work.take_over_memory(0.95, 1.0)

    assert expected_time(fleet, asked(QUESTION), 0.0).at == 1


def test_slower_backend_gets_fewer_prompts() -> None:
    fleet = a_fleet(2)
    for _ in range(15):
        fleet[0].work.note_reading(1000, 1.0, 0.0)
    compare([one.work for one in fleet], 0.0)
    chosen = Counter[int]()
    for _ in range(44):
        at = expected_time(fleet, asked(QUESTION), 0.0).at
        chosen[at] += 1
        send(fleet[at], QUESTION.tokens)

    assert chosen[0] * 4 < chosen[1]


def test_equal_backends_take_turns() -> None:
    fleet = a_fleet(4)
    chosen = []
    for number in range(4):
        now = 10.0 * (number + 1)
        chosen.append(expected_time(fleet, asked(QUESTION), now).at)
        pending = fleet[chosen[-1]].work.send(QUESTION.tokens, now, is_streamed=True)
        fleet[chosen[-1]].work.begin(pending, now + 1)
        fleet[chosen[-1]].work.end(pending, now + 2)

    assert sorted(chosen) == [0, 1, 2, 3]


def test_one_shared_prefix_makes_no_hot_spot() -> None:
    fleet = a_fleet(4)
    held = {0: QUESTION.shared}
    chosen = Counter[int]()
    for _ in range(64):
        at = expected_time(fleet, asked(QUESTION, held), 0.0).at
        chosen[at] += 1
        send(fleet[at], QUESTION.tokens - held.get(at, 0) / 4)
        held[at] = QUESTION.shared

    assert max(chosen.values()) <= 18


def test_replicas_agree_on_the_home_of_a_conversation_that_one_of_them_knows() -> None:
    one, other = a_fleet(8), a_fleet(8)
    for backend in (*one, *other):
        backend.load.leases = 3
        backend.load.set_foreign(3)
    for number in range(20):
        words = f"{number} " * 2000
        first = expected_time(one, asked(a_prompt("s" * 4000, words), goes_on=0.9), 0.0).at
        following = a_prompt("s" * 4000, words, "a" * 400, "and?")

        assert expected_time(other, asked(following, goes_on=0.9), 0.0).at == first


def test_session_name_goes_before_the_first_question() -> None:
    fleet = a_fleet(8)
    for backend in fleet:
        backend.load.leases = 3
        backend.load.set_foreign(3)
    homes = {
        expected_time(fleet, asked(a_prompt("s" * 4000, f"{number}", session="mine"), goes_on=0.9), 0.0).at
        for number in range(8)
    }

    assert len(homes) == 1


def test_single_replica_follows_no_rule() -> None:
    fleet = a_fleet(8)
    chosen = set()
    for number in range(8):
        now = 100.0 * number
        at = expected_time(fleet, asked(QUESTION, goes_on=0.9), now).at
        chosen.add(at)
        fleet[at].work.sent_at = now + 1

    assert len(chosen) == 8


def test_power_of_two_takes_the_less_loaded_of_two() -> None:
    fleet = a_fleet(2)
    fleet[0].load.leases = 5

    assert {power_of_two(fleet, asked(QUESTION), 0.0).at for _ in range(20)} == {1}


def test_round_robin_takes_turns() -> None:
    fleet = a_fleet(3)
    chosen = []
    for now in range(1, 7):
        at = round_robin(fleet, asked(QUESTION), float(now)).at
        fleet[at].work.send(1, float(now), is_streamed=True)
        chosen.append(at)

    assert chosen == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("gone", [0, 3])
def test_rendezvous_moves_only_the_prompts_of_a_backend_that_leaves(gone: int) -> None:
    fleet = a_fleet(8)
    prompts = [a_prompt(f"{number} " * 400, "q") for number in range(100)]
    homes = [rendezvous(fleet, asked(prompt), 0.0).at for prompt in prompts]
    left = [one for one in fleet if one.number != gone]

    moved = [
        at for at, prompt in enumerate(prompts) if left[rendezvous(left, asked(prompt), 0.0).at].number != homes[at]
    ]

    assert len(set(homes)) == 8
    assert moved == [at for at, home in enumerate(homes) if home == gone]


@pytest.mark.parametrize("name", [name for name in POLICIES if POLICIES[name].reads_prompts])
def test_every_policy_has_a_number_for_each_of_its_terms(name: str) -> None:
    fleet = a_fleet(5)
    policy = POLICIES[name]
    assert isinstance(policy, PromptPolicy)

    scores = policy.scoring(fleet, asked(QUESTION), 1.0)

    assert len(scores.rows) == len(fleet)
    assert {len(row) for row in scores.rows} <= {len(policy.terms), 0}
    best = max if policy.most_wins else min
    assert scores.rows[scores.at][-1] == best(row[-1] for row in scores.rows if row)


def test_expected_seconds_add_up() -> None:
    fleet = a_fleet(4)
    for number, one in enumerate(fleet):
        one.load.slots = 2
        one.cost = 1 + number
        one.load.set_foreign(number)
        one.work.take_over_memory(number / 4, 1.0)
        send(one, 1000.0 * number)

    scores = expected_time(fleet, asked(QUESTION, {2: 4000}, goes_on=0.9), 0.0)

    for one, (held, place, before, own, crowd, memory, home, _tier, cost) in zip(fleet, scores.rows, strict=True):
        assert held >= (1000 if one.number == 2 else 0)
        assert min(place, before, own, crowd, memory) >= 0 >= home
        whole = place + before + own + crowd + memory + home
        assert cost == pytest.approx(whole * one.cost if whole > 0 else whole / one.cost)
        reading = (QUESTION.tokens - held) / one.work.reads
        coming = min(0.1, reading) * one.load.total / one.work.answer_seconds
        stalled = 1.2 * one.load.total / 2
        assert own == pytest.approx(reading * (1 + 1 + coming + stalled))  # one other prompt waits
    assert [row[2] for row in scores.rows] == sorted(row[2] for row in scores.rows)
    assert scores.rows[3][1] > 0 == scores.rows[0][1]  # only the last one has no free slot


def test_a_prompt_is_read_where_it_stops_the_fewest_answers() -> None:
    fleet = a_fleet(2)
    for one in fleet:
        one.load.slots = 4
    fleet[0].load.leases, fleet[0].work.sent_at = 3, -100.0  # it would win the tie

    assert expected_time(fleet, asked(QUESTION), 0.0).at == 1


def test_a_held_prompt_does_not_count_while_its_slot_is_busy() -> None:
    fleet = a_fleet(2)
    for one in fleet:
        one.load.slots = 4
    held = {0: 4000}
    slot = fleet[0].work.contents.take(QUESTION.chain, 4)
    assert slot is not None

    busy = expected_time(fleet, asked(QUESTION, held), 0.0).rows[0][0]
    fleet[0].work.contents.release(slot)
    free = expected_time(fleet, asked(QUESTION, held), 0.0).rows[0][0]

    assert busy == 0
    assert free == 4000 / QUESTION.bytes_a_token


def test_power_of_two_has_rows_for_two_candidates_only() -> None:
    fleet = a_fleet(6)
    for number, one in enumerate(fleet):
        one.load.leases = number

    scores = power_of_two(fleet, asked(QUESTION), 0.0)

    assert [row == () or row == (at,) for at, row in enumerate(scores.rows)] == [True] * 6
    assert sum(row != () for row in scores.rows) == 2


def test_candidate_that_never_got_a_request_has_infinite_idle_time() -> None:
    fleet = a_fleet(2)
    send(fleet[0], 1, now=3.0)

    assert round_robin(fleet, asked(QUESTION), 10.0).rows == [(7.0,), (math.inf,)]
