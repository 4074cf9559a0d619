"""Builds access control: the keys and the gate."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from pydantic import SecretStr

from inference_engine_proxy_server.access.allowances import Allowance, Allowances
from inference_engine_proxy_server.access.gate import Gate
from inference_engine_proxy_server.access.key_ring import KeyRing
from inference_engine_proxy_server.composition.state import Sharing
from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.telemetry.journal import Journal
from inference_engine_proxy_server.usage.spending import Spending

__all__ = ["build_allowances", "build_gate", "build_key_ring", "forwards_keys"]


def _needs_keys(settings: Settings) -> bool:
    """Whether clients need a key."""
    return bool(settings.api_keys) or settings.api_keys_file is not None


def forwards_keys(settings: Settings) -> bool:
    """Whether backends for which the proxy has no key get the clients' own keys."""
    return not _needs_keys(settings) or settings.forward_client_key


def build_key_ring(settings: Settings, journal: Journal) -> KeyRing | None:
    """The keys of clients; ``None`` when clients need none.

    Raises:
        KeyFileError: the key file cannot be used.
    """
    if not _needs_keys(settings):
        return None
    file = None if settings.api_keys_file is None else Path(settings.api_keys_file)
    return KeyRing(settings.api_keys, file, time.time, journal)


def build_allowances(clock: Callable[[], float], spending: Spending, sharing: Sharing | None) -> Allowances:
    """What each key has left of its limits: for all processes together, or in this process."""
    return Allowances(clock, spending, Allowance if sharing is None else sharing.limits.new_allowance)


def build_gate(settings: Settings, ring: KeyRing | None, allowances: Allowances) -> Gate:
    """The gate, which admits requests by their keys."""
    return Gate(
        ring,
        allowances,
        admin_key=_revealed(settings.admin_key),
        announce_key=_revealed(settings.announce_key),
        metrics_key=_revealed(settings.metrics_key),
        operators_elsewhere=settings.admin_port is not None,
    )


def _revealed(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()
