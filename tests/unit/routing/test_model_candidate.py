"""How requests for the models of a router are placed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from inference_engine_proxy_server.backends.base import BackendState, ModelReport, ModelStatus
from inference_engine_proxy_server.dispatch.leases import Lease
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.model_load import ModelLoad
from inference_engine_proxy_server.routing.affinity import Affinity
from inference_engine_proxy_server.routing.requirements import Requirements
from support.clocked_pool import Clock, lease_of, make_pool, publish, ready
from support.pools import Pool

LOADED = ModelReport("loaded", in_memory=True, is_ready=True, capacity=1)
UNLOADED = ModelReport("unloaded", in_memory=False, is_ready=False, capacity=1)
TURN = 10.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


def router_state(loaded: str = "a", most: float = 1) -> BackendState:
    reports = {name: LOADED if name in loaded else UNLOADED for name in "ab"}
    cold = {name: ModelStatus.COLD for name in "ab" if name not in loaded}
    entries = ({"id": "a", "aliases": ["alpha"]}, {"id": "b"})
    return replace(ready(None, models="ab"), models=entries, model_reports=reports, most_models=most, statuses=cold)


def router(clock: Clock, *, configs: Mapping[str, object] | None = None, state: BackendState | None = None) -> Pool:
    pool = make_pool(clock, 1, configs=[configs or {}])
    backend = pool.backends[0]
    backend.swap_rules = replace(backend.swap_rules, turn_seconds=TURN, clock=clock)
    publish(pool, 0, state or router_state())
    return pool


def load_of(pool: Pool, model: str) -> ModelLoad:
    models = pool.backends[0].loaded_models
    assert models is not None
    load = models.find(model)
    assert load is not None
    return load


def test_a_request_waits_for_a_slot_of_its_own_model(clock: Clock) -> None:
    pool = router(clock, state=router_state("ab", most=2))
    first = lease_of(pool, "alpha")
    assert pool.lease(Requirements("a")) is None
    lease_of(pool, "b")
    assert (load_of(pool, "a").leases, load_of(pool, "b").leases, pool.requests_in_flight) == (1, 1, 2)
    first.close()
    first.close()
    assert (load_of(pool, "a").leases, pool.requests_in_flight) == (0, 1)


def test_a_request_for_a_model_that_is_not_in_memory_waits_for_running_ones(clock: Clock) -> None:
    pool = router(clock)
    running = lease_of(pool, "a")
    assert pool.lease(Requirements("b")) is None
    assert pool.lease(Requirements("b", needs_slot=False)) is None  # it would load the model, too
    reading = pool.lease(Requirements("b", needs_slot=False, loads_nothing=True))
    assert reading is not None
    assert load_of(pool, "b").leases == 0
    running.close()
    lease_of(pool, "b")
    assert pool.lease(Requirements("a")) is None


def test_a_waiting_request_is_counted_by_its_model_until_it_leaves(clock: Clock) -> None:
    pool = router(clock)
    lease_of(pool, "a")
    with pool.placement.waiting(Requirements("b"), ()):
        assert load_of(pool, "b").waiting == 1
        clock.now += TURN
        publish(pool, 0, router_state())
        assert not load_of(pool, "a").is_admitted
    assert load_of(pool, "b").waiting == 0
    assert load_of(pool, "a").is_admitted


def test_a_request_that_excludes_the_router_does_not_wait_for_its_models(clock: Clock) -> None:
    pool = router(clock)
    lease_of(pool, "a")
    with pool.placement.waiting(Requirements("b"), pool.backends):
        assert load_of(pool, "b").waiting == 0


def test_a_request_that_needs_the_router_counts_for_its_model(clock: Clock) -> None:
    pool = router(clock)
    affinity = Affinity(b"resp_1", None, pool.backends[0], creates_response=True, deletes=False)
    lease = pool.lease(Requirements("a", affinity=affinity))
    assert lease is not None
    assert load_of(pool, "a").leases == 1


def test_the_fleet_file_states_slots_and_places(clock: Clock) -> None:
    pool = router(clock, configs={"capacity": 3, "max_loaded_models": 2})
    assert load_of(pool, "b").limit == 3
    lease_of(pool, "a")
    lease_of(pool, "b")  # there is room for both


def test_an_engine_may_become_a_router_and_cease_to_be_one(clock: Clock) -> None:
    pool = router(clock, state=replace(ready(models="ab"), capacity=2))
    backend: Backend = pool.backends[0]
    before: Lease = lease_of(pool, "a")
    assert backend.loaded_models is None

    publish(pool, 0, router_state())
    during = lease_of(pool, "a")
    assert (backend.load.leases, load_of(pool, "a").leases) == (2, 1)
    publish(pool, 0, replace(ready(models="ab"), capacity=4))
    assert backend.loaded_models is None
    after = lease_of(pool, "a")
    assert (backend.load.leases, backend.load.limit) == (3, 4)
    for lease in (before, during, after):
        lease.close()
    assert backend.load.leases == 0


def test_a_poll_without_a_models_list_changes_nothing(clock: Clock) -> None:
    pool = router(clock)
    lease_of(pool, "a")
    publish(pool, 0, replace(ready(None), models=None))
    assert load_of(pool, "a").leases == 1
    assert pool.lease(Requirements("b")) is None


def test_requests_from_elsewhere_count_for_the_backend_too(clock: Clock) -> None:
    pool = router(clock)
    busy = ModelReport("loaded", True, True, 4, requests_processing=2.0, requests_waiting=1.0)
    publish(pool, 0, replace(router_state(), model_reports={"a": busy, "b": UNLOADED}))
    assert (load_of(pool, "a").total, pool.backends[0].load.total) == (3, 3)
