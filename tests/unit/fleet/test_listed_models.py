"""Names that an unknown name may misspell."""

from __future__ import annotations

import time

import pytest

from inference_engine_proxy_server.fleet.listed_models import similar_names

NAMES = [
    "qwen3-14b",
    "qwen3-14b-think",
    "gpt-4o",
    "org/Model",
    "embedding",
    *(f"other-{number}" for number in range(50)),
]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt-4", ["gpt-4o"]),
        ("GPT-4O", ["gpt-4o"]),
        ("qwen3-14", ["qwen3-14b", "qwen3-14b-think"]),
        ("org/modl", ["org/Model"]),
        ("unlike", []),
        ("", []),
        ("x" * 1_000_000, []),
    ],
)
def test_the_most_similar_names_are_found(name: str, expected: list[str]) -> None:
    assert similar_names(name, NAMES) == expected


def test_similar_names_take_little_time_whatever_the_names_are() -> None:
    names = [f"{'ab' * 40}{number}" for number in range(1000)]
    started = time.process_time()
    similar_names("ba" * 500, names)
    assert time.process_time() - started < 0.5
