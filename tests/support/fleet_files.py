"""Fleet files from texts."""

from __future__ import annotations

import tempfile
from pathlib import Path

from inference_engine_proxy_server.config.configuration import Configuration
from inference_engine_proxy_server.config.fleet_file import FleetFile, read_fleet_file
from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.models.catalog import ModelCatalog

__all__ = ["catalog_of", "configuration_of", "fleet_file_of"]

_VARIABLES = tuple(field.upper() for field in Settings.model_fields)


def fleet_file_of(text: str) -> FleetFile:
    """The content of a fleet file with this text."""
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(text)
        file.flush()
        return read_fleet_file(Path(file.name), {}, _VARIABLES)


def configuration_of(text: str, settings: Settings) -> Configuration:
    """The configuration from ``settings`` and a fleet file with this text."""
    file = fleet_file_of(text)
    return Configuration.of(settings, file.backends, file.models, file.default_model)


def catalog_of(text: str) -> ModelCatalog:
    """The catalog of a fleet file with this text."""
    file = fleet_file_of(text)
    return ModelCatalog(file.models, file.default_model)
