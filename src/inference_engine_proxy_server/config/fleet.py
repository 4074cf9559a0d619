"""The fleet: what is known of each backend beside its URL, and of each model beside its name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from pydantic import SecretStr

from inference_engine_proxy_server.config.base_urls import name_of, server_of

__all__ = ["BackendConfig", "ModelConfig", "completed"]


@dataclass(frozen=True, slots=True)
class BackendConfig:
    """What is known of one backend; ``None`` where nobody has said anything.

    Attributes:
        url: base URL, as it stands in ``Settings.backends``.
        name: for people; no other backend has it.
        engine: a provider of the registry of engines; ``None``: to be found out.
        weight: its share of requests, where backends are equally loaded.
        api_key: what it is shown as a key.
        models: names that it serves, in place of what it tells.
        capacity: requests that it works on at a time.
        max_requests_processing, max_requests_waiting: numbers it tells above which it is busy.
    """

    url: str
    name: str
    engine: str | None = None
    weight: float = 1
    api_key: SecretStr | None = None
    models: tuple[str, ...] | None = None
    capacity: int | None = None
    max_requests_processing: int | None = None
    max_requests_waiting: int | None = None


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What holds for requests that ask for one model; ``None`` where nobody has said anything.

    Attributes:
        balancing_policy: how a backend is chosen for them; ``None``: as for all others.
    """

    balancing_policy: str | None = None


def completed(
    urls: Iterable[str], described: Iterable[BackendConfig], key: SecretStr | None = None
) -> tuple[BackendConfig, ...]:
    """One for each of ``urls``: the described one that means the same server, or one with defaults.

    Args:
        key: for backends that have none of their own.
    """
    by_server = {server_of(backend.url): backend for backend in described}
    found = [replace(by_server.get(server_of(url)) or BackendConfig(url, name_of(url)), url=url) for url in urls]
    names = [backend.name for backend in found]
    return tuple(
        replace(
            backend,
            # http://a:443 and https://a:443 have one short name.
            name=backend.url if names.count(backend.name) > 1 else backend.name,
            api_key=backend.api_key or key,
        )
        for backend in found
    )
