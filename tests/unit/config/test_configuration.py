"""The frozen configuration: settings, fleet and models together."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
from pydantic import ValidationError

from inference_engine_proxy_server.config.configuration import Configuration
from inference_engine_proxy_server.config.fleet import BackendConfig, ModelConfig
from inference_engine_proxy_server.config.settings import Settings


def test_settings_alone_give_a_fleet() -> None:
    settings = Settings(backends=("http://a", "http://b:1/x"), backend_api_key="k")

    fleet = Configuration.of(settings).fleet

    assert [(backend.url, backend.name) for backend in fleet] == [("http://a", "a:80"), ("http://b:1/x", "b:1/x")]
    assert all(backend.api_key == settings.backend_api_key for backend in fleet)
    assert Configuration.of(Settings()).fleet == ()


def test_a_description_applies_to_the_backend_with_the_same_server() -> None:
    settings = Settings(backends=("http://a", "http://b"))

    fleet = Configuration.of(settings, [BackendConfig("http://b:80", "second", weight=3)]).fleet

    assert [(backend.url, backend.weight) for backend in fleet] == [("http://a", 1), ("http://b", 3)]


def test_configurations_with_different_descriptions_differ() -> None:
    settings = Settings(backends=("http://a",))

    assert Configuration.of(settings) != Configuration.of(settings, [BackendConfig("http://a", "a:80", weight=3)])


def test_taking_over_another_fleet_changes_only_the_fleet_and_its_models() -> None:
    models = {"m": ModelConfig("rendezvous")}
    described = [BackendConfig("http://b:1", "b", weight=3)]
    other = Configuration.of(Settings(backends=("http://b:1",), backend_api_key="k", port=1), described, models)

    changed = Configuration.of(Settings(backends=("http://a:1",), port=2)).with_fleet_of(other)

    assert (changed.fleet, changed.models) == (other.fleet, models)
    assert (changed.settings.backends, changed.settings.backend_api_key) == (
        ("http://b:1",),
        other.settings.backend_api_key,
    )
    assert changed.settings.port == 2


def test_a_configuration_cannot_be_changed() -> None:
    models = {"m": ModelConfig()}
    configuration = Configuration.of(Settings(), models=models)
    models["n"] = ModelConfig()

    assert set(configuration.models) == {"m"}
    with pytest.raises(FrozenInstanceError):
        configuration.fleet = ()  # type: ignore[misc]
    with pytest.raises(ValidationError):
        configuration.settings.port = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        configuration.models["n"] = ModelConfig()  # type: ignore[index]
