"""The fleet: configuration of each backend besides its URL, and of each model besides its name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from pydantic import SecretStr

from inference_engine_proxy_server.config.base_urls import name_of, server_of
from inference_engine_proxy_server.config.parameters import ParameterPath

__all__ = ["BackendConfig", "ModelConfig", "ParametersConfig", "completed"]


@dataclass(frozen=True, slots=True)
class BackendConfig:
    """The configuration of one backend; ``None`` means not configured.

    Attributes:
        url: base URL, or the URL of a lookup, as in ``Settings.backends``.
        name: shown to people; unique in the fleet.
        engine: a provider in the engine registry; ``None`` to detect the engine.
        weight: relative share of requests among equally loaded backends.
        tier: backends of a higher tier get what those of lower tiers have no room for.
        is_external: whether it is a service of somebody else, which is never polled.
        takes_any_model: whether it serves every name, even one that other backends list.
        api_key: sent to the backend as the API key.
        models: model names it serves, in place of the names it reports.
        accepts_unlisted_models: whether it serves names that it does not list.
        capacity: requests that it processes at a time; for a router, requests for each of its models.
        max_loaded_models: models that it holds in memory at most, if it loads and unloads them.
        max_requests_processing, max_requests_waiting: reported counts above which the backend is busy.
        stream_usage: whether it is asked for the usage of streams, for the ledger; ``None``: if its engine needs that.
        host_name: the name of the server, for the field ``Host`` and for its certificate, if ``url`` has only its
            address; ``None``: ``url`` has it.
        may_differ: in what it may differ from other backends with the same model; the values of ``Aspect``.
        place: where it is described, for messages, such as ``fleet.yaml: backends.0``; empty outside the fleet file.
    """

    url: str
    name: str
    engine: str | None = None
    weight: float = 1
    tier: int = 1
    is_external: bool = False
    takes_any_model: bool = False
    api_key: SecretStr | None = None
    models: tuple[str, ...] | None = None
    accepts_unlisted_models: bool | None = None
    capacity: int | None = None
    max_loaded_models: int | None = None
    max_requests_processing: int | None = None
    max_requests_waiting: int | None = None
    stream_usage: bool | None = None
    host_name: str | None = None
    may_differ: tuple[str, ...] = ()
    place: str = field(default="", compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class ParametersConfig:
    """How the parameters in requests for one model are changed. Values are JSON, by their paths.

    Attributes:
        defaults: added to requests without them.
        fixed: replace those of the request.
        removed: removed from the request, before the others are added.
        reasoning_efforts: what a client's effort means: another effort, or parameters that are set instead.
        system_prompt: added to requests without one; ``None`` for none.
    """

    defaults: Mapping[ParameterPath, object] = field(default_factory=dict)
    fixed: Mapping[ParameterPath, object] = field(default_factory=dict)
    removed: tuple[ParameterPath, ...] = ()
    reasoning_efforts: Mapping[str, str | Mapping[ParameterPath, object]] = field(default_factory=dict)
    system_prompt: str | None = None


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The configuration of one model; ``None`` means not configured.

    Attributes:
        balancing_policy: how a backend is chosen for its requests; ``None`` for the policy of all other requests.
        aliases: other names of the model, and patterns with ``*``.
        hidden_aliases: whether the list of models leaves the aliases out.
        serves_as: the model that answers its requests; ``None`` if the name is that of a model itself.
        parameters: changes of the parameters in its requests.
        fallbacks: the names of models that serve its requests if it cannot, in this order.
        fallback_after_seconds: how long a request may wait for it if there are fallbacks; ``None``: as long as usual.
    """

    balancing_policy: str | None = None
    aliases: tuple[str, ...] = ()
    hidden_aliases: bool = False
    serves_as: str | None = None
    parameters: ParametersConfig | None = None
    fallbacks: tuple[str, ...] = ()
    fallback_after_seconds: float | None = None


def completed(
    urls: Iterable[str], described: Iterable[BackendConfig], key: SecretStr | None = None
) -> tuple[BackendConfig, ...]:
    """One configuration for each URL: its description if there is one, else the defaults.

    Args:
        urls: decide which backends there are, and their order.
        described: matched by server, so two spellings of one URL match.
        key: for backends without a key of their own.
    """
    by_server = {server_of(backend.url): backend for backend in described}
    found = [replace(by_server.get(server_of(url)) or BackendConfig(url, name_of(url)), url=url) for url in urls]
    names = [backend.name for backend in found]
    return tuple(
        replace(
            backend,
            # http://a:443 and https://a:443 have the same short name.
            name=backend.url if names.count(backend.name) > 1 else backend.name,
            api_key=backend.api_key or key,
        )
        for backend in found
    )
