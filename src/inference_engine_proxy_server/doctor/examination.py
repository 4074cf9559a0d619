"""Runs all checks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from inference_engine_proxy_server.backends.registry import discover_engines
from inference_engine_proxy_server.config.sources import LoadedSettings
from inference_engine_proxy_server.doctor.backend_checks import examine_backend
from inference_engine_proxy_server.doctor.discovery_checks import find_backends
from inference_engine_proxy_server.doctor.dns_checks import check_name
from inference_engine_proxy_server.doctor.finding import Finding, Severity
from inference_engine_proxy_server.doctor.fleet_checks import check_fleet
from inference_engine_proxy_server.doctor.machine_checks import check_machine
from inference_engine_proxy_server.doctor.public_checks import check_public
from inference_engine_proxy_server.doctor.settings_checks import check_settings, ignored_settings
from inference_engine_proxy_server.doctor.state_checks import check_state

__all__ = ["Examination", "examine", "examine_locally"]

_AT_A_TIME = 16  # backends; each takes up to some seconds if it does not answer
_ORDER = (Severity.ERROR, Severity.WARNING, Severity.NOTE)


def examine_locally(loaded: LoadedSettings) -> list[Finding]:
    """The findings that need no network and are no warnings of ``loaded``, the worst first."""
    return _worst_first([*check_settings(loaded), *check_machine(loaded.settings)])


class Examination(NamedTuple):
    """All findings, the worst first, and the number of backends that were examined."""

    findings: list[Finding]
    backends: int


def examine(loaded: LoadedSettings, through: str | None = None) -> Examination:
    """Run all checks. External services are not asked: each request may cost money.

    Args:
        loaded: the settings.
        through: base URL by which clients reach the running proxy; ``None`` to leave that out.
    """
    settings = loaded.settings
    found, about_lookups = find_backends(loaded.configuration.lookups)
    own = [config for config in (*loaded.configuration.fleet, *found) if not config.is_external]
    examine_one = partial(examine_backend, settings=settings, engines=discover_engines())
    with ThreadPoolExecutor(_AT_A_TIME) as threads:
        examined = list(threads.map(examine_one, own))
        about_names = [finding for found in threads.map(lambda one: list(check_name(one)), own) for finding in found]
    findings = _worst_first(
        [
            *ignored_settings(loaded),
            *examine_locally(loaded),
            *(finding for one in examined for finding in one.findings),
            *about_lookups,
            *about_names,
            *check_fleet(examined),
            *check_state(settings),
            *(check_public(through, settings, time.time()) if through is not None else ()),
        ]
    )
    return Examination(findings, len(own))


def _worst_first(findings: Sequence[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: _ORDER.index(finding.severity))
