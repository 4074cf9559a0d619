"""Makes backends of what the DNS says."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from inference_engine_proxy_server.config.base_urls import name_of
from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.config.lookups import Lookup
from inference_engine_proxy_server.discovery.dns_records import DnsRecord

__all__ = ["backends_of"]

_WEIGHTS = (0.001, 1000.0)
_MOST_TIERS = 100


def backends_of(lookup: Lookup, entry: BackendConfig, records: Sequence[DnsRecord]) -> list[BackendConfig]:
    """A backend for each address and port.

    SRV priorities become tiers: the lowest priority is the tier of the entry, the next one the tier after it. SRV
    weights become weights: those of one priority are scaled so that their mean is the weight of the entry.

    Args:
        lookup: what was looked up.
        entry: what is true of every backend.
        records: the answer.
    """
    weights: dict[int, list[int]] = {}
    for record in records:
        weights.setdefault(record.priority, []).append(record.weight)
    priorities = sorted(weights)
    means = {priority: sum(some) / len(some) for priority, some in weights.items()}
    backends: dict[str, BackendConfig] = {}
    for record in records:
        url = _url_of(lookup, record)
        backends[url] = replace(
            entry,
            url=url,
            name=_name_of(lookup, entry, record),
            host_name=record.target if lookup.kind == "srv" else lookup.name.rstrip("."),
            tier=min(_MOST_TIERS, entry.tier + priorities.index(record.priority)),
            weight=_weight_of(entry, record, means[record.priority]),
        )
    return list(backends.values())


def _url_of(lookup: Lookup, record: DnsRecord) -> str:
    host = f"[{record.address}]" if ":" in record.address else record.address
    return f"{lookup.scheme}://{host}:{record.port or lookup.port}{lookup.path}"


def _name_of(lookup: Lookup, entry: BackendConfig, record: DnsRecord) -> str:
    """A name that stays the same as long as the address does, such as ``engines-10-0-0-3``."""
    is_given = entry.name not in (entry.url, name_of(entry.url))
    group = entry.name if is_given else lookup.name.partition(".")[0].lstrip("_")
    address = re.sub("[.:]", "-", record.address)
    return f"{group}-{address}" if record.port is None else f"{group}-{address}-{record.port}"


def _weight_of(entry: BackendConfig, record: DnsRecord, mean: float) -> float:
    if not mean:
        return entry.weight
    share = round(entry.weight * record.weight / mean, 3)
    return min(max(share, _WEIGHTS[0]), _WEIGHTS[1])
