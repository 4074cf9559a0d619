"""A changed configuration is applied to the fleet; backends that stay keep their health and their requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from inference_engine_proxy_server.config.fleet import BackendConfig, ModelConfig
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.fleet_updater import FleetUpdater
from support.clocked_pool import Clock, make_pool


class Site:
    """A fleet of two backends, and what its updater calls.

    Attributes:
        reconfigured: backends whose engine must be identified again.
        models: reported settings of models, and default models.
    """

    def __init__(self) -> None:
        self.fleet = make_pool(Clock(), 2).fleet
        self.configs = [backend.config for backend in self.fleet.backends]
        self.reconfigured: list[Backend] = []
        self.models: list[tuple[Mapping[str, ModelConfig], str | None]] = []
        self.updater = FleetUpdater(self.fleet, self._make_backend, self.reconfigured.append, self._take_models, {})

    def _take_models(self, models: Mapping[str, ModelConfig], default_model: str | None) -> None:
        self.models.append((models, default_model))

    def _make_backend(self, config: BackendConfig) -> Backend:
        [made] = make_pool(Clock(), 1).backends
        made.url = config.url
        made.configure(config)
        return made


def test_same_configuration_changes_nothing() -> None:
    site = Site()
    before = site.fleet.backends
    assert not site.updater.apply_backends(site.configs)
    assert site.fleet.backends is before


def test_backends_that_stay_are_kept_when_another_joins() -> None:
    site = Site()
    before = site.fleet.backends
    joins = BackendConfig("http://joins:80", "joins")
    assert site.updater.apply_backends([joins, *site.configs[1:]])
    assert [backend.url for backend in site.fleet.backends] == ["http://joins:80", before[1].url]
    assert site.fleet.backends[1] is before[1]
    assert site.fleet.changed.is_set()
    assert (before[0].is_draining, site.reconfigured) == (True, [])


def test_engine_is_identified_again_when_its_configuration_changes() -> None:
    site = Site()
    first = site.fleet.backends[0]
    assert site.updater.apply_backends([replace(site.configs[0], engine="vllm"), site.configs[1]])
    assert first.config.engine == "vllm"
    assert site.reconfigured == [first]


def test_new_weight_or_name_needs_no_identification() -> None:
    site = Site()
    assert site.updater.apply_backends([replace(site.configs[0], weight=3, name="large"), site.configs[1]])
    assert site.fleet.backends[0].config.weight == 3
    assert site.reconfigured == []


def test_changed_settings_of_models_are_reported_once() -> None:
    site = Site()
    models = {"m": ModelConfig("rendezvous")}
    assert site.updater.apply_models(models)
    assert not site.updater.apply_models(models)
    assert site.updater.apply_models(models, "m")
    assert site.models == [(models, None), (models, "m")]


def test_server_with_another_name_is_another_backend() -> None:
    site = Site()
    before = site.fleet.backends
    renamed = replace(site.configs[0], host_name="engines.local")
    assert site.updater.apply_backends([renamed, site.configs[1]])
    assert site.fleet.backends[0] is not before[0]
    assert site.fleet.backends[1] is before[1]
    assert before[0].is_draining
