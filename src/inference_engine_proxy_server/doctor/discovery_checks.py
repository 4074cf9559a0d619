"""The backends that DNS names stand for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.config.lookups import Lookup
from inference_engine_proxy_server.config.service_types import is_service
from inference_engine_proxy_server.discovery.dns_backends import backends_of
from inference_engine_proxy_server.discovery.dns_records import DnsFailure, NothingFound, look_up
from inference_engine_proxy_server.doctor.finding import Finding, Severity

__all__ = ["find_backends"]


def find_backends(entries: Sequence[BackendConfig]) -> tuple[list[BackendConfig], list[Finding]]:
    """The backends that ``entries`` stand for now, and what is wrong with the names. Multicast names are left out."""
    return asyncio.run(_find_all([entry for entry in entries if not is_service(entry.url)]))


async def _find_all(entries: Sequence[BackendConfig]) -> tuple[list[BackendConfig], list[Finding]]:
    backends: list[BackendConfig] = []
    findings: list[Finding] = []
    for found in await asyncio.gather(*map(_find, entries)):
        if isinstance(found, Finding):
            findings.append(found)
        else:
            backends += found
    return backends, findings


async def _find(entry: BackendConfig) -> list[BackendConfig] | Finding:
    lookup = Lookup.of(entry.url)
    server = "the name servers of the system" if lookup.server is None else f"the name server {lookup.server.host}"
    try:
        answer = await look_up(lookup)
    except NothingFound as error:
        remedy = f"Check the name, and whether {server} has records for it: dig {lookup.name}."
        return Finding("discovery_no_records", Severity.WARNING, entry.url, f"No backend is found: {error}.", remedy)
    except DnsFailure as error:
        remedy = f"Check {server}. A proxy that starts now has no backends from this name until there is an answer."
        return Finding("discovery_no_answer", Severity.ERROR, entry.url, f"No backend is found: {error}.", remedy)
    return backends_of(lookup, entry, answer.records)
