"""Everything that the operator configures, as one frozen object: settings, the fleet, and per-model settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from inference_engine_proxy_server.config.fleet import BackendConfig, ModelConfig, completed
from inference_engine_proxy_server.config.lookups import is_lookup
from inference_engine_proxy_server.config.settings import Settings

__all__ = ["Configuration"]


@dataclass(frozen=True, slots=True)
class Configuration:
    """The configuration of one proxy.

    Attributes:
        settings: all settings.
        fleet: one entry for each of the backends in ``settings`` that has a base URL, in their order.
        models: per-model settings, by the names that requests use.
        default_model: the model of requests that name none; ``None`` if none is configured.
        origins: where the value of each variable comes from; empty if the settings come from no source.
        lookups: one entry for each of the backends in ``settings`` that is a DNS name; what it says besides its URL is
            true of each backend that is found there.
    """

    settings: Settings
    fleet: tuple[BackendConfig, ...]
    models: Mapping[str, ModelConfig]
    default_model: str | None = None
    origins: Mapping[str, str] = field(default_factory=dict)
    lookups: tuple[BackendConfig, ...] = ()

    @classmethod
    def of(
        cls,
        settings: Settings,
        described: Iterable[BackendConfig] = (),
        models: Mapping[str, ModelConfig] = MappingProxyType({}),
        default_model: str | None = None,
        origins: Mapping[str, str] = MappingProxyType({}),
    ) -> Configuration:
        """The configuration from ``settings`` and a fleet file together.

        Args:
            settings: decide which backends there are.
            described: the fleet file's backends; a backend without a description gets the defaults.
            models: the fleet file's models.
            default_model: the fleet file's; the setting DEFAULT_MODEL takes precedence.
            origins: where the value of each variable comes from.
        """
        every = completed(settings.backends, described, settings.backend_api_key)
        return cls(
            settings,
            tuple(one for one in every if not is_lookup(one.url)),
            MappingProxyType(dict(models)),
            settings.default_model or default_model,
            MappingProxyType(dict(origins)),
            tuple(one for one in every if is_lookup(one.url)),
        )

    def with_fleet_of(self, other: Configuration) -> Configuration:
        """The same settings with the fleet and models of ``other``."""
        fleet_settings = {
            "backends": other.settings.backends,
            "backend_api_key": other.settings.backend_api_key,
            "default_model": other.settings.default_model,
        }
        settings = self.settings.model_copy(update=fleet_settings)
        changed = {name: other.origins[name] for name in map(str.upper, fleet_settings) if name in other.origins}
        origins = MappingProxyType({**self.origins, **changed})
        return Configuration(settings, other.fleet, other.models, other.default_model, origins, other.lookups)
