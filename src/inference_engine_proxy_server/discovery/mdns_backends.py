"""Makes backends of the services that multicast DNS has found."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from inference_engine_proxy_server.config.added_backends import JoiningEntry, described_backend
from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.config.service_types import ServiceType

__all__ = ["Service", "backend_of", "in_order"]

_NUMBERS = {"tier": int, "weight": float}


@dataclass(frozen=True, slots=True)
class Service:
    """One instance of a service type.

    Attributes:
        instance: its name, without the type.
        addresses: IPv4 and IPv6, without scope.
        port: TCP.
        properties: its TXT record; keys in lower case.
    """

    instance: str
    addresses: tuple[str, ...]
    port: int
    properties: Mapping[str, str]


def in_order(addresses: Iterable[str]) -> tuple[str, ...]:
    """Addresses that a URL can have, the best first: IPv4 before IPv6, and self-assigned ones last."""
    usable = [address for address in map(ipaddress.ip_address, addresses) if not _needs_scope(address)]
    return tuple(map(str, sorted(usable, key=lambda one: (one.is_link_local, one.version, one))))


def _needs_scope(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return address.is_unspecified or (address.version == 6 and address.is_link_local)


def backend_of(service: Service, address: str, kind: ServiceType, entry: BackendConfig) -> BackendConfig:
    """The backend that a service is.

    Args:
        service: found.
        address: one of its addresses.
        kind: the type that was looked for.
        entry: what the operator says of all backends of this type; it overrides what the service says of itself.

    Raises:
        DescriptionError: the service describes itself wrongly.
    """
    told = service.properties
    scheme = told.get("scheme", kind.scheme)
    host = f"[{address}]" if ":" in address else address
    path = f"/{told['path'].strip('/')}" if told.get("path", "").strip("/") else ""
    described: dict[str, Any] = {
        "url": f"{scheme}://{host}:{service.port}{path}",
        "name": told.get("name") or _as_name(service.instance),
        **{name: _number(told[name], of) for name, of in _NUMBERS.items() if name in told},
    }
    if told.get("models"):
        described["models"] = [model.strip() for model in told["models"].split(",")]
    own = described_backend(described, JoiningEntry).config({})
    return replace(
        entry,
        url=own.url,
        name=own.name,
        tier=own.tier if entry.tier == 1 else entry.tier,
        weight=own.weight if entry.weight == 1 else entry.weight,
        models=own.models if entry.models is None else entry.models,
        place="",
    )


def _number(text: str, of: type[int | float]) -> object:
    """The number, or the text itself, about which the description then complains."""
    try:
        return of(text)
    except ValueError:
        return text


def _as_name(instance: str) -> str:
    return re.sub("[^A-Za-z0-9._-]+", "-", instance).strip("-")[:64] or "engine"
