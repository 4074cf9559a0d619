"""Reported facts about a model hold for every name that it answers to."""

from __future__ import annotations

import math

import pytest

from inference_engine_proxy_server.backends.base import BackendState, ModelEntry, ModelNames
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.tasks.deadlines import Deadlines
from support.pools import make_pool

SMALL: ModelEntry = {"id": "small", "aliases": ["s"]}
LARGE: ModelEntry = {"id": "large"}


def a_backend(*models: ModelEntry, **contexts: int) -> Backend:
    [backend] = make_pool(["http://192.0.2.1:1"], Deadlines()).backends
    backend.update_serving(
        BackendState(ready=True, models=models, model_names=ModelNames.ANY, contexts=contexts, memory_tokens=1)
    )
    return backend


@pytest.mark.parametrize(
    ("name", "tokens"), [("small", 1024), ("s", 1024), ("large", 8192), ("unloaded", None), ("?", None), (None, None)]
)
def test_each_model_has_a_context_of_its_own(name: str | None, tokens: int | None) -> None:
    assert a_backend(SMALL, LARGE, {"id": "unloaded"}, small=1024, large=8192).serving.context_of(name) == tokens


@pytest.mark.parametrize("name", ["small", "s", "any", None])
def test_context_of_the_only_model_holds_for_every_name(name: str | None) -> None:
    assert a_backend(SMALL, small=1024).serving.context_of(name) == 1024


def test_facts_missing_in_a_report_keep_their_last_value() -> None:
    backend = a_backend(SMALL, small=1024)
    backend.update_serving(BackendState(ready=True))
    assert backend.serving.context_of("small") == 1024
    for reported, known in ((7, 7), (None, 7), (9, 9)):
        state = BackendState(ready=True, memory_tokens=reported)
        backend.update_load(state, own_at_poll=0, allowance=0, now=0.0)
        assert backend.memory_tokens == known
    assert backend.load.slots == math.inf


@pytest.mark.parametrize(
    ("asked", "listed"), [("small", "small"), ("s", "s"), ("large", "large"), ("invented", "small"), (None, "small")]
)
def test_a_request_counts_for_a_listed_name(asked: str | None, listed: str) -> None:
    assert a_backend(SMALL, LARGE).serving.listed_name(asked) == listed


def test_without_a_list_of_models_no_name_is_known() -> None:
    assert a_backend().serving.listed_name("invented") is None
