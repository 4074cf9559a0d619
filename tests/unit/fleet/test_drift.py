"""Which differences between replicas are found, and how they are worded."""

from __future__ import annotations

import typing
from dataclasses import replace
from typing import Any

import pytest

from inference_engine_proxy_server.backends.base import BackendState, ModelEntry
from inference_engine_proxy_server.backends.fingerprint import Fingerprint, Weights
from inference_engine_proxy_server.config import fleet_form
from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.fleet.difference import Aspect, Difference, Value
from inference_engine_proxy_server.fleet.drift import Replica, differences, replicas_of
from inference_engine_proxy_server.fleet.serving import Serving

SMALL, LARGE = Weights(7, 4000, 9, 64), Weights(7, 8000, 9, 64)
USUAL = Fingerprint(SMALL, None, "t", "k", 4, "b1")
NAMES = {f"http://b{number}": f"b{number}" for number in range(1, 10)}


class Fleet:
    """Replicas that are alike at first."""

    def __init__(self, count: int, fingerprint: Fingerprint = USUAL, context: int | None = 8192) -> None:
        self.engines = ["llamacpp"] * count
        self.fingerprints = [fingerprint] * count
        self.contexts = [context] * count
        self.entries: list[ModelEntry] = [{"id": "m", "aliases": ["m"]}] * count
        self.configs: list[dict[str, Any]] = [{}] * count

    def differ(self, at: int, **changed: Any) -> Fleet:
        self.fingerprints[at - 1] = replace(self.fingerprints[at - 1], **changed)
        return self

    def found(self) -> tuple[Difference, ...]:
        replicas: list[Replica] = []
        for number, entry in enumerate(self.entries, 1):
            model, context = entry["id"], self.contexts[number - 1]
            state = BackendState(
                ready=True,
                models=(entry,),
                contexts={} if context is None else {model: context},
                fingerprints={model: self.fingerprints[number - 1]},
            )
            config = BackendConfig(f"http://b{number}", f"b{number}", **self.configs[number - 1])
            serving = Serving.of((entry,), state, config)
            replicas += replicas_of(config.url, self.engines[number - 1], serving, config)
        return differences(replicas)

    def sentences(self) -> list[str]:
        return [one.sentence(NAMES) for one in self.found()]


@pytest.mark.parametrize("count", [1, 2, 9])
def test_equal_replicas_have_no_differences(count: int) -> None:
    assert Fleet(count).found() == ()


@pytest.mark.parametrize(
    ("changed", "aspect", "is_warning"),
    [
        ({"weights": LARGE}, Aspect.WEIGHTS, True),
        ({"template": "u"}, Aspect.TEMPLATE, True),
        ({"tokenizer": "l"}, Aspect.TOKENIZER, True),
        ({"source": "other"}, Aspect.SOURCE, True),
        ({"slots": 8}, Aspect.SLOTS, False),
        ({"version": "b2"}, Aspect.VERSION, False),
    ],
)
def test_each_aspect_is_compared(changed: dict[str, Any], aspect: Aspect, is_warning: bool) -> None:
    fleet = Fleet(3, replace(USUAL, source="one")).differ(2, **changed)
    [found] = fleet.found()
    assert (found.aspect, found.is_warning, found.urls) == (aspect, is_warning, ("http://b2",))


def test_the_minority_differs_from_the_majority() -> None:
    fleet = Fleet(3)
    fleet.contexts[1] = 4096
    [found] = fleet.found()
    assert found.sentence(NAMES) == (
        "b2 has a context of 4,096 tokens for m; the others have a context of 8,192 tokens: "
        "longer prompts have fewer backends."
    )
    assert found.remedy.startswith("Start every backend so that a request may have 8,192 tokens (llama.cpp")
    assert found.as_json(NAMES) == {
        "model": "m", "aspect": "context", "severity": "warning", "usual": "8,192", "remedy": found.remedy,
        "values": [{"value": "4,096", "backends": ["b2"]}], "text": found.sentence(NAMES),
    }  # fmt: skip


def test_without_a_majority_all_values_are_named() -> None:
    fleet = Fleet(2)
    fleet.contexts[1] = 4096
    [found] = fleet.found()
    assert (found.urls, found.usual, found.is_warning) == (("http://b1", "http://b2"), None, True)
    assert found.sentence(NAMES).startswith(
        "b1 has a context of 8,192 tokens for m; b2 has a context of 4,096 tokens: "
    )
    assert "may have equally many tokens" in found.remedy


def test_a_longer_context_than_usual_is_only_a_note() -> None:
    fleet = Fleet(3)
    fleet.contexts[2] = 16384
    assert [one.is_warning for one in fleet.found()] == [False]


def test_many_backends_are_counted() -> None:
    fleet = Fleet(9)
    for number in range(1, 5):
        fleet.differ(number, template="u")
    assert fleet.sentences()[0].startswith("b1, b2, b3 and b4 have the chat template u for m; the others have the chat")
    fleet = Fleet(9)
    for number in range(1, 9):
        fleet.differ(number, template=f"u{number % 2}")
    assert fleet.sentences()[0].startswith("b1, b3, b5 and b7 have the chat template u1 for m; b2, b4, b6 and b8 have")
    assert (
        Difference("m", Aspect.SLOTS, False, (Value("8", tuple(NAMES)[:6]),), "4")
        .sentence(NAMES)
        .startswith("b1, b2, b3, b4, b5 and 1 more have 8 slots for m; the others have 4 slots: ")
    )


def test_unknown_facts_are_not_compared() -> None:
    fleet = Fleet(2).differ(2, weights=None, template=None, tokenizer=None, slots=None, version=None)
    fleet.contexts[1] = None
    assert fleet.found() == ()


def test_versions_and_tokenizers_of_different_engines_are_not_compared() -> None:
    fleet = Fleet(2).differ(2, version="0.32.0", tokenizer="l")
    assert [one.aspect for one in fleet.found()] == [Aspect.TOKENIZER, Aspect.VERSION]
    fleet.engines[1] = "vllm"
    assert fleet.found() == ()


def test_sources_are_compared_without_regard_to_case() -> None:
    assert Fleet(2, replace(USUAL, source="Qwen3-8B")).differ(2, source="qwen3-8b").found() == ()


def test_a_backend_that_may_differ_is_left_out() -> None:
    fleet = Fleet(2).differ(2, slots=8, template="u")
    fleet.configs[1] = {"may_differ": ("slots",)}
    assert [one.aspect for one in fleet.found()] == [Aspect.TEMPLATE]


def test_an_alias_that_one_backend_lacks() -> None:
    fleet = Fleet(3)
    fleet.entries[:2] = [{"id": "m", "aliases": ["m", "chat"]}] * 2
    assert fleet.sentences() == [
        "b3 has the names m for m; the others have the names chat, m: "
        "requests reach only the backends that know the name."
    ]


def test_one_model_under_two_names() -> None:
    fleet = Fleet(2)
    fleet.entries[1] = {"id": "n"}
    assert [(one.aspect, one.urls) for one in fleet.found()] == [(Aspect.NAMES, ("http://b1", "http://b2"))]
    fleet.differ(2, weights=LARGE)  # another model may have another name
    assert fleet.found() == ()


def test_names_in_the_fleet_file_replace_those_of_engines() -> None:
    fleet = Fleet(2).differ(2, template="u")
    fleet.entries = [{"id": "/a.gguf"}, {"id": "/b.gguf"}]
    fleet.configs = [{"models": ("m",)}, {"models": ("m",)}]
    assert [(one.model, one.aspect) for one in fleet.found()] == [("m", Aspect.TEMPLATE)]


def test_a_group_with_two_names_is_compared_once() -> None:
    fleet = Fleet(2).differ(2, slots=8)
    fleet.entries = [{"id": "m", "aliases": ["m", "chat"]}] * 2
    assert [one.model for one in fleet.found()] == ["m"]


def test_the_fleet_file_knows_every_aspect() -> None:
    assert set(typing.get_args(fleet_form.Aspect)) == {aspect.value for aspect in Aspect}


@pytest.mark.parametrize(
    ("changed", "continues"),
    [
        ({}, True),
        ({"slots": 8, "version": "b2"}, True),
        ({"template": None}, True),
        ({"weights": LARGE}, False),
        ({"template": "u"}, False),
        ({"tokenizer": "u"}, False),
    ],
)
def test_a_stream_continues_only_on_a_replica_that_reads_and_answers_alike(
    changed: dict[str, Any], continues: bool
) -> None:
    assert USUAL.is_same_model(replace(USUAL, **changed)) is continues
