"""Each request goes to a backend that serves its model, and to one whose model is awake if there is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from inference_engine_proxy_server.backends.base import BackendState, ModelNames, ModelStatus
from inference_engine_proxy_server.errors import CapacityError, ProxyError
from inference_engine_proxy_server.requests.prompt import read_prompt
from inference_engine_proxy_server.requests.token_sizes import TokenSizes
from inference_engine_proxy_server.routing.policies import POLICIES
from inference_engine_proxy_server.routing.requirements import Requirements
from support.clocked_pool import (
    LOADING,
    Clock,
    lease_of,
    make_pool,
    publish,
    ready,
    refusal,
)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize("names", [ModelNames.ANY, ModelNames.UNKNOWN])
def test_unlisted_model_goes_to_non_strict_backends(clock: Clock, names: ModelNames) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, ready(models=["a"]))
    publish(pool, 1, ready(models=["b"], names=names))
    assert {lease_of(pool, "other").backend.url for _ in range(6)} == {pool.backends[1].url}


def test_unlisted_model_is_404_if_all_models_are_known_and_no_backend_accepts_it(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, ready(models=["a"]))
    publish(pool, 1, ready(models=["b"]))
    assert refusal(pool, "other") == (404, "model_not_found", None)


@pytest.mark.parametrize("names", list(ModelNames))
def test_unlisted_model_is_503_while_the_models_of_a_backend_are_unknown(clock: Clock, names: ModelNames) -> None:
    pool = make_pool(clock, 3)
    publish(pool, 0, ready(models=["a"], names=names))
    publish(pool, 1, LOADING)
    pool.report_refusal(pool.backends[2])
    assert refusal(pool, "other") == (503, "no_backend_available", 3)
    assert lease_of(pool, "a").backend is pool.backends[0]


def test_unlisted_model_is_503_while_a_backend_that_accepts_it_is_down(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, ready(models=["a"]))
    publish(pool, 1, ready(models=["b"], names=ModelNames.ANY))
    pool.report_refused_connection(pool.backends[1])
    assert refusal(pool, "other") == (503, "no_backend_available", 3)


def test_backend_that_reports_no_models_gets_unlisted_models(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, ready(models=["a"], names=ModelNames.ANY))
    publish(pool, 1, BackendState(ready=True, models=None))
    assert {lease_of(pool, "other").backend.url for _ in range(6)} == {pool.backends[1].url}


def test_model_of_a_backend_that_is_down_never_goes_to_one_that_accepts_any_name(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, ready(models=["alpha"], names=ModelNames.ANY))
    publish(pool, 1, ready(models=["beta"], names=ModelNames.ANY))
    lease_of(pool, "alpha").close()
    pool.report_refused_connection(pool.backends[0])
    assert refusal(pool, "alpha") == (503, "no_backend_available", 3)
    assert lease_of(pool, "gpt-4o").backend is pool.backends[1]
    clock.now += 1
    publish(pool, 0, ready(models=["alpha"], names=ModelNames.ANY))
    assert lease_of(pool, "alpha").backend is pool.backends[0]


def test_model_of_the_fleet_file_is_known_before_its_backend_reports(clock: Clock) -> None:
    pool = make_pool(clock, 2, configs=[{"models": ("alpha",)}, {}])
    pool.report_refusal(pool.backends[0])
    publish(pool, 1, ready(models=["beta"], names=ModelNames.ANY))
    assert refusal(pool, "alpha") == (503, "no_backend_available", 3)
    assert lease_of(pool, "gpt-4o").backend is pool.backends[1]


def test_model_that_was_served_before_is_not_answered_by_another(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, ready(models=["alpha"], names=ModelNames.ANY))
    publish(pool, 1, ready(models=["beta"], names=ModelNames.ANY))
    publish(pool, 0, ready(models=["gamma"], names=ModelNames.ANY))
    assert refusal(pool, "alpha") == (404, "model_not_found", None)
    pool.replace(pool.backends[1:])
    assert refusal(pool, "gamma") == (404, "model_not_found", None)


def test_backend_marked_in_the_fleet_file_gets_unlisted_models(clock: Clock) -> None:
    pool = make_pool(clock, 3, configs=[{"accepts_unlisted_models": True}, {}, {}])
    publish(pool, 0, ready(models=["a"]))
    publish(pool, 1, ready(models=["b"]))
    publish(pool, 2, ready(models=["c"], names=ModelNames.ANY))
    assert {lease_of(pool, "adapter").backend.url for _ in range(6)} == {pool.backends[0].url}
    assert lease_of(pool, "b").backend is pool.backends[1]


def test_backend_marked_in_the_fleet_file_may_refuse_unlisted_models(clock: Clock) -> None:
    pool = make_pool(clock, 1, configs=[{"accepts_unlisted_models": False}])
    publish(pool, 0, ready(models=["a"], names=ModelNames.ANY))
    assert refusal(pool, "other") == (404, "model_not_found", None)


def test_model_of_a_backend_that_is_down_is_503_not_404(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, ready(models=["a"]))
    publish(pool, 1, ready(models=["b"]))
    pool.report_refused_connection(pool.backends[1])
    with pytest.raises(CapacityError):
        lease_of(pool, "b")


def test_treatment_of_other_names_holds_as_long_as_the_models(clock: Clock) -> None:
    pool = make_pool(clock, 1)
    publish(pool, 0, ready(models=["a"], names=ModelNames.STRICT))
    publish(pool, 0, BackendState(ready=True, models=None))
    with pytest.raises(ProxyError):
        lease_of(pool, "other")


def test_model_answers_to_its_aliases(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, ready(models=["a"], names=ModelNames.ANY))
    entry = {"id": "long-name", "aliases": ["short", 7]}
    publish(pool, 1, BackendState(ready=True, models=(entry,), model_names=ModelNames.STRICT))
    assert {lease_of(pool, "short").backend.url for _ in range(6)} == {pool.backends[1].url}


def test_request_waits_for_the_full_backend_that_lists_its_model(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, replace(ready(models=["a"]), capacity=1))
    publish(pool, 1, ready(models=["b"], names=ModelNames.ANY))
    assert lease_of(pool, "a").backend is pool.backends[0]
    assert pool.lease(Requirements("a")) is None  # no other model may answer under this name


@pytest.mark.parametrize("stated", [None, ("x:latest",)])
def test_listed_latest_tag_is_implied(clock: Clock, stated: tuple[str, ...] | None) -> None:
    pool = make_pool(clock, 2, configs=[{"models": stated}, {}])
    publish(pool, 0, ready(models=["x:latest", "y:8b"], names=ModelNames.STRICT))
    publish(pool, 1, ready(models=["z"], names=ModelNames.ANY))
    for name in ("x", "x:latest"):
        assert {lease_of(pool, name).backend.url for _ in range(4)} == {pool.backends[0].url}
    assert lease_of(pool, "y").backend is pool.backends[1]


COLD, FAILED = ModelStatus.COLD, ModelStatus.FAILED
POLICY_NAMES = sorted(POLICIES)


def cold(status: ModelStatus, *models: str, of: Sequence[str] = ("m",), capacity: int | None = 2) -> BackendState:
    """A report of a backend with the models ``of``, some of which have ``status``."""
    return replace(ready(models=of), statuses=dict.fromkeys(models, status), capacity=capacity)


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_awake_backend_goes_before_cold_ones_until_it_is_full(clock: Clock, policy: str) -> None:
    pool = make_pool(clock, 4)
    for index, state in enumerate([cold(FAILED, "m"), cold(COLD, "m"), cold(COLD), cold(FAILED, "m")]):
        publish(pool, index, state)
    prompt = read_prompt(b"/x", "/v1/completions", b"", b'{"model": "m", "prompt": "%b"}' % (b"x" * 2000), TokenSizes())
    requirements = Requirements("m", prompt=prompt, policy=POLICIES[policy])
    chosen = []
    for _ in range(5):
        lease = pool.lease(requirements)
        assert lease is not None
        chosen.append(pool.backends.index(lease.backend))
    assert chosen[:4] == [2, 2, 1, 1]
    assert chosen[4] in (0, 3)


def test_retry_prefers_an_awake_backend(clock: Clock) -> None:
    pool = make_pool(clock, 3)
    for index, state in enumerate([cold(COLD), cold(COLD, "m"), cold(COLD)]):
        publish(pool, index, state)
    for _ in range(2):
        assert lease_of(pool, "m", excluded=[pool.backends[0]]).backend is pool.backends[2]
    assert lease_of(pool, "m", excluded=[pool.backends[0]]).backend is pool.backends[1]


def test_doubtful_awake_backend_goes_before_a_cold_one(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, cold(COLD))
    publish(pool, 1, cold(COLD, "m"))
    pool.report_failure(pool.backends[0], "it answered 500")
    assert pool.backends[0].is_last_choice
    assert lease_of(pool, "m").backend is pool.backends[0]


def test_each_model_of_a_router_is_cold_by_itself(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, cold(COLD, "b", of=["a", "b"], capacity=None))
    publish(pool, 1, cold(COLD, "a", of=["a", "b"], capacity=None))
    assert {pool.backends.index(lease_of(pool, "a").backend) for _ in range(4)} == {0}
    assert {pool.backends.index(lease_of(pool, "b").backend) for _ in range(4)} == {1}


def test_backend_that_wakes_up_takes_its_share(clock: Clock) -> None:
    pool = make_pool(clock, 2)
    publish(pool, 0, cold(COLD, capacity=None))
    publish(pool, 1, cold(COLD, "m", capacity=None))
    assert {pool.backends.index(lease_of(pool, "m").backend) for _ in range(4)} == {0}
    publish(pool, 1, cold(COLD, capacity=None))
    assert {pool.backends.index(lease_of(pool, "m").backend) for _ in range(4)} == {1}


def test_sleeping_backend_is_cold_for_its_aliases_and_for_requests_without_a_model(clock: Clock) -> None:
    pool = make_pool(clock, 2, configs=[{"models": ("public",)}, {"models": ("public",)}])
    publish(pool, 0, cold(COLD, capacity=None))
    publish(pool, 1, cold(COLD, "m", capacity=None))
    for name in ("public", None):
        assert {pool.backends.index(lease_of(pool, name).backend) for _ in range(4)} == {0}
