from __future__ import annotations

import pytest

from inference_engine_proxy_server.backends.base import BackendState, ModelNames
from inference_engine_proxy_server.config.fleet import ModelConfig
from inference_engine_proxy_server.fleet.model_labels import ModelLabels
from inference_engine_proxy_server.models.catalog import ModelCatalog
from inference_engine_proxy_server.models.live_catalog import LiveCatalog
from inference_engine_proxy_server.tasks.deadlines import Deadlines
from support.pools import Pool, make_pool

A, B, GONE = "http://a", "http://b", "http://gone"


@pytest.fixture
def pool() -> Pool:
    """Two backends: one lists two models, the other one has not reported."""
    pool = make_pool([A, B], Deadlines())
    state = BackendState(
        ready=True,
        models=({"id": "m", "aliases": ["short"]}, {"id": "n"}),
        model_names=ModelNames.ANY,
    )
    pool.publish(pool.backends[0], state, own_at_poll=0, asked_at=pool.clock())
    return pool


@pytest.fixture
def labels(pool: Pool) -> ModelLabels:
    named = {"big": ModelConfig(serves_as="engine-name", aliases=("nick",)), "plain": ModelConfig()}
    catalog = LiveCatalog(ModelCatalog(named))
    return ModelLabels(pool.fleet, catalog, pool.placement.lists)


@pytest.mark.parametrize(
    ("backend", "model", "label"),
    [
        (A, "m", "m"),
        (A, "short", "short"),
        (A, "made up", "m"),
        (A, None, "m"),
        (B, "m", ""),
        (None, "m", "m"),
        (None, "made up", ""),
        (None, None, ""),
        (None, "engine-name", "engine-name"),
        (None, "plain", "plain"),
        (GONE, "n", "n"),
        (GONE, "made up", ""),
    ],
)
def test_labels_are_names_that_the_fleet_has(
    labels: ModelLabels, backend: str | None, model: str | None, label: str
) -> None:
    assert labels.of(backend, model) == label


def test_all_models_are_listed_ones_and_those_of_the_fleet_file(labels: ModelLabels) -> None:
    assert list(labels.all()) == ["m", "n", "engine-name", "plain"]


def test_a_backend_that_joins_is_known(pool: Pool, labels: ModelLabels) -> None:
    pool.replace(pool.backends[:1])
    assert labels.of(B, "m") == "m"  # it has left, so only the name counts
