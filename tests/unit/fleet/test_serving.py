"""Which backends can continue an answer of another one."""

from __future__ import annotations

import math
from typing import Any

import pytest

from inference_engine_proxy_server.backends.base import Api
from inference_engine_proxy_server.backends.fingerprint import Fingerprint, Weights
from inference_engine_proxy_server.fleet.serving import Serving

COMPLETIONS = Api.COMPLETIONS


def serving(
    name: str = "m", context: int | None = None, apis: frozenset[Api] = frozenset(Api), **known: Any
) -> Serving:
    contexts, fingerprint = {} if context is None else {name: context}, Fingerprint(**known)
    return Serving(
        ({"id": name},), frozenset({name}), contexts=contexts, only_context=context, continued_apis=apis,
        fingerprints={name: fingerprint}, only_fingerprint=fingerprint,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("one", "other", "continues"),
    [
        (serving(), serving(), True),
        (serving("n"), serving("m"), False),
        (serving(apis=frozenset({Api.MESSAGES})), serving(), False),
        # weights
        (serving(weights=Weights(1, 1, 1, 1)), serving(weights=Weights(1, 1, 1, 1)), True),
        (serving(weights=Weights(1, 1, 1, 1)), serving(weights=Weights(1, 2, 1, 1)), False),
        (serving(), serving(weights=Weights(1, 2, 1, 1)), True),
        # what reads the prompt
        (serving(template="a"), serving(template="a"), True),
        (serving(template="a"), serving(template="b"), False),
        (serving(tokenizer="a"), serving(tokenizer="b"), False),
        (serving(tokenizer="a", engine="llamacpp"), serving(tokenizer="b", engine="vllm"), True),  # cannot be compared
        (serving(version="a", slots=1), serving(version="b", slots=2), True),
        # contexts
        (serving(context=100), serving(context=100), True),
        (serving(context=200), serving(context=100), True),
        (serving(context=99), serving(context=100), False),
        (serving(context=99), serving(), True),
        (serving(), serving(context=100), True),
    ],
)
def test_another_backend_continues_an_answer_of_the_same_model(one: Serving, other: Serving, continues: bool) -> None:
    assert one.continues(other, "m", COMPLETIONS, math.inf) is continues
    if one.model_ids == other.model_ids:
        assert one.continues(other, None, COMPLETIONS, math.inf) is continues


@pytest.mark.parametrize(("most_tokens", "continues"), [(50, True), (51, False)])
def test_a_shorter_context_is_enough_for_a_short_answer(most_tokens: int, continues: bool) -> None:
    assert serving(context=50).continues(serving(context=100), "m", COMPLETIONS, most_tokens) is continues
