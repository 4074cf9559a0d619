"""What a new request can reuse depends on which slots are free, and what they hold."""

from __future__ import annotations

from array import array

import pytest

from inference_engine_proxy_server.requests.prompt import ENDS
from inference_engine_proxy_server.routing.expected_time.slot_contents import Slot, SlotContents

SYSTEM = list(range(1, 11))


def chain(*own: int, system: list[int] = SYSTEM) -> array[int]:
    return array("q", [*system, *own])


def taken(contents: SlotContents, prompt: array[int], slots: float = 2) -> Slot:
    slot = contents.take(prompt, slots)
    assert slot is not None
    return slot


def test_a_free_slot_shares_what_it_holds() -> None:
    contents = SlotContents()
    contents.release(taken(contents, chain(20)))

    assert contents.usable(chain(21), ENDS[9], 2) == ENDS[9]


def test_a_busy_slot_shares_nothing() -> None:
    contents = SlotContents()
    taken(contents, chain(20))

    assert contents.usable(chain(21), ENDS[9], 2) == 0


def test_a_prompt_that_no_slot_holds_is_in_host_memory() -> None:
    contents = SlotContents()
    contents.release(taken(contents, chain(20), 1))
    contents.release(taken(contents, chain(system=[99] * 12), 1))

    assert contents.usable(chain(20), ENDS[10], 1) == ENDS[10]


def test_a_request_that_reuses_a_beginning_overwrites_the_rest() -> None:
    contents = SlotContents()
    contents.release(taken(contents, chain(20, 21, 22)))
    contents.release(taken(contents, chain(30)))

    assert contents.usable(chain(20, 21, 22, 23), ENDS[12], 2) == ENDS[9], "only the beginning is left"


def test_a_conversation_read_again_counts_as_held() -> None:
    contents = SlotContents()
    for own in (20, 30, 20):
        contents.release(taken(contents, chain(own), 1))

    assert contents.usable(chain(20, 21), ENDS[10], 1) == ENDS[10]


def test_a_conversation_finds_its_slot_though_another_was_free_for_longer() -> None:
    contents = SlotContents()
    first, second = taken(contents, chain(20, system=[1] * 9)), taken(contents, chain(30, system=[2] * 9))
    contents.release(first)
    contents.release(second)

    assert taken(contents, chain(30, 31, system=[2] * 9)) is second


def test_the_slot_unused_for_longest_is_taken_for_a_prompt_that_is_like_none() -> None:
    contents = SlotContents()
    first, second = taken(contents, chain(20)), taken(contents, chain(30))
    contents.release(second)
    contents.release(first)

    assert taken(contents, chain(system=[7] * 12)) is second


def test_no_held_prompt_is_given_up_while_a_slot_is_empty() -> None:
    contents = SlotContents()
    contents.release(taken(contents, chain(20)))
    contents.release(taken(contents, chain(system=[7] * 12)))

    assert contents.usable(chain(21), ENDS[9], 2) == ENDS[9]
    assert contents.usable(chain(system=[7] * 12), ENDS[11], 2) == ENDS[11]


@pytest.mark.parametrize(("alike", "share"), [(0, 0.0), (1, 0.5), (2, 1.0)])
def test_when_all_slots_are_busy_the_first_to_become_free_may_hold_the_prompt(alike: int, share: float) -> None:
    contents = SlotContents()
    for number in range(2):
        taken(contents, chain(20 + number) if number < alike else chain(system=[7 + number] * 12))
    if not alike:
        contents.release(taken(contents, chain(20), 3))
        taken(contents, chain(30), 3)  # which overwrites it

    held = ENDS[9] if alike else ENDS[10]
    slots = 2 if alike else 3

    assert contents.usable(chain(20 if not alike else 25), held, slots) == pytest.approx(share * held)


def test_sharing_of_busy_slots_is_learned() -> None:
    contents = SlotContents()
    taken(contents, chain(20))

    for _ in range(20):
        contents.learn(was_shared=True)

    assert contents.usable(chain(21), ENDS[9], 2) == pytest.approx(ENDS[9], rel=0.01)


def test_nothing_is_followed_with_many_slots() -> None:
    contents = SlotContents()

    assert contents.take(chain(20), 200) is None
    assert contents.usable(chain(21), ENDS[9], 200) == ENDS[9]


def test_requests_beyond_the_slots_leave_no_slots_behind() -> None:
    contents = SlotContents()
    slots = [taken(contents, chain(number, system=[number] * 12)) for number in range(1, 6)]
    for slot in slots:
        contents.release(slot)
    for number in range(10, 20):
        contents.release(taken(contents, chain(number, system=[number] * 12)))

    assert len(contents) == 2


def test_a_restarted_engine_holds_nothing_in_its_slots() -> None:
    contents = SlotContents()
    slot = taken(contents, chain(20))

    contents.forget()
    contents.release(slot)

    assert len(contents) == 0
