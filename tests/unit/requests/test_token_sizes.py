"""Estimates of bytes per token, also with outliers."""

from __future__ import annotations

import random

import pytest

from inference_engine_proxy_server.requests.token_sizes import USUAL_BYTES_A_TOKEN, TokenSizes


@pytest.mark.parametrize("bytes_a_token", [1.0, 2.5, 4.0, 9.0])
def test_two_prompts_replace_the_initial_estimate(bytes_a_token: float) -> None:
    sizes = TokenSizes()
    for _ in range(2):
        sizes.learn("tiny", round(2000 * bytes_a_token), 2000)
    assert sizes.of("tiny") == bytes_a_token
    assert sizes.of("other") == sizes.of(None) == USUAL_BYTES_A_TOKEN


def test_the_first_prompt_counts_as_much_as_the_initial_estimate() -> None:
    sizes = TokenSizes()
    sizes.learn("tiny", 2000, 1000)
    assert sizes.of("tiny") == 3.0


def test_outliers_do_not_change_the_estimate() -> None:
    sizes, chance = TokenSizes(), random.Random(7)
    for number in range(200):
        sizes.learn("tiny", chance.randint(5600, 6400), 2000)
        if number % 4 == 0:
            sizes.learn("tiny", 5_000_000, 2000)
            sizes.learn("tiny", 2, 100_000)
        assert number < 2 or sizes.of("tiny") == pytest.approx(3.0, rel=0.1)


def test_a_replaced_model_is_learned_after_sixteen_prompts() -> None:
    sizes = TokenSizes()
    for _ in range(100):
        sizes.learn("tiny", 8000, 2000)
    for _ in range(16):
        sizes.learn("tiny", 4000, 2000)
    assert sizes.of("tiny") == 2.0


def test_dense_text_is_assumed_until_enough_prompts_are_known() -> None:
    sizes = TokenSizes()
    assert sizes.fewest("tiny") == 3.0
    for number in range(8):
        assert sizes.fewest("tiny") == 3.0
        sizes.learn("tiny", 8000 + number, 2000)
    assert sizes.fewest("tiny") == 3.6


def test_one_dense_prompt_counts_unless_it_is_one_of_many() -> None:
    sizes = TokenSizes()
    sizes.learn("tiny", 2000, 2000)
    assert sizes.fewest("tiny") == 0.9
    for _ in range(30):
        sizes.learn("tiny", 8000, 2000)
    assert sizes.fewest("tiny") == 3.6
    for _ in range(4):
        sizes.learn("tiny", 4000, 2000)
    assert (sizes.fewest("tiny"), sizes.of("tiny")) == (1.8, 4.0)


def test_short_prompts_are_ignored() -> None:
    sizes = TokenSizes()
    for size, tokens in ((30, 60), (0, 300), (30, 0)):
        sizes.learn("tiny", size, tokens)
    assert sizes.of("tiny") == USUAL_BYTES_A_TOKEN


def test_the_number_of_models_is_bounded() -> None:
    sizes = TokenSizes()
    sizes.learn("first", 2000, 1000)
    sizes.learn("used", 2000, 1000)
    for number in range(1023):
        sizes.learn(f"made up {number}", 2000, 1000)
        sizes.learn("used", 2000, 1000)
    assert sizes.of("first") == USUAL_BYTES_A_TOKEN
    assert sizes.of("used") == 2.0
