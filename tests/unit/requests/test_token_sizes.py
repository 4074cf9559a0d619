"""Bytes a token are what replies tell, however odd some of them are."""

from __future__ import annotations

import random

import pytest

from inference_engine_proxy_server.requests.token_sizes import USUAL_BYTES_A_TOKEN, TokenSizes


@pytest.mark.parametrize("bytes_a_token", [1.0, 2.5, 4.0, 9.0])
def test_a_model_has_what_two_prompts_told(bytes_a_token: float) -> None:
    sizes = TokenSizes()
    for _ in range(2):
        sizes.learn("tiny", round(2000 * bytes_a_token), 2000)
    assert sizes.of("tiny") == bytes_a_token
    assert sizes.of("other") == sizes.of(None) == USUAL_BYTES_A_TOKEN


def test_the_first_prompt_counts_as_much_as_the_guess() -> None:
    sizes = TokenSizes()
    sizes.learn("tiny", 2000, 1000)
    assert sizes.of("tiny") == 3.0


def test_odd_prompts_change_nothing() -> None:
    sizes, chance = TokenSizes(), random.Random(7)
    for number in range(200):
        sizes.learn("tiny", chance.randint(5600, 6400), 2000)
        if number % 4 == 0:
            sizes.learn("tiny", 5_000_000, 2000)
            sizes.learn("tiny", 2, 100_000)
        assert number < 2 or sizes.of("tiny") == pytest.approx(3.0, rel=0.1)


def test_another_model_behind_the_same_name_is_known_after_sixteen_prompts() -> None:
    sizes = TokenSizes()
    for _ in range(100):
        sizes.learn("tiny", 8000, 2000)
    for _ in range(16):
        sizes.learn("tiny", 4000, 2000)
    assert sizes.of("tiny") == 2.0


def test_dense_text_is_expected_until_enough_has_been_seen() -> None:
    sizes = TokenSizes()
    assert sizes.fewest("tiny") == 3.0
    for number in range(8):
        assert sizes.fewest("tiny") == 3.0
        sizes.learn("tiny", 8000 + number, 2000)
    assert sizes.fewest("tiny") == 3.6


def test_one_dense_prompt_is_enough_as_long_as_it_is_not_one_of_very_many() -> None:
    sizes = TokenSizes()
    sizes.learn("tiny", 2000, 2000)
    assert sizes.fewest("tiny") == 0.9
    for _ in range(30):
        sizes.learn("tiny", 8000, 2000)
    assert sizes.fewest("tiny") == 3.6
    for _ in range(4):
        sizes.learn("tiny", 4000, 2000)
    assert (sizes.fewest("tiny"), sizes.of("tiny")) == (1.8, 4.0)


def test_short_prompts_say_nothing_since_the_template_is_much_of_them() -> None:
    sizes = TokenSizes()
    for size, tokens in ((30, 60), (0, 300), (30, 0)):
        sizes.learn("tiny", size, tokens)
    assert sizes.of("tiny") == USUAL_BYTES_A_TOKEN


def test_names_that_clients_make_up_take_no_more_than_so_much_memory() -> None:
    sizes = TokenSizes()
    sizes.learn("first", 2000, 1000)
    sizes.learn("used", 2000, 1000)
    for number in range(1023):
        sizes.learn(f"made up {number}", 2000, 1000)
        sizes.learn("used", 2000, 1000)
    assert sizes.of("first") == USUAL_BYTES_A_TOKEN
    assert sizes.of("used") == 2.0
