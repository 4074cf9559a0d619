"""A reload is logged, except for the one that only confirms the configuration of a new worker."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from inference_engine_proxy_server.backends.registry import discover_engines
from inference_engine_proxy_server.config.configuration import Configuration
from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.config.sources import SettingsError
from inference_engine_proxy_server.discovery.config_watch import ConfigWatch
from inference_engine_proxy_server.discovery.discovery import Discovery
from inference_engine_proxy_server.discovery.dns_source import DnsSource
from inference_engine_proxy_server.fleet.fleet import Fleet
from inference_engine_proxy_server.fleet.fleet_updater import FleetUpdater
from inference_engine_proxy_server.telemetry.journal import Journal
from inference_engine_proxy_server.telemetry.request_metrics import RequestMetrics

UNCHANGED = "settings: reloaded, the fleet is unchanged"


def watch_of(file: Path, *, is_worker: bool) -> ConfigWatch:
    configuration = Configuration.of(Settings(config_file=str(file)))
    return ConfigWatch(
        configuration,
        lambda: configuration,
        discovery_of(configuration),
        RequestMetrics(),
        Journal(),
        is_worker=is_worker,
    )


def discovery_of(configuration: Configuration) -> Discovery:
    updater = FleetUpdater(Fleet([], 3), _no_backend, print, print, {})  # type: ignore[arg-type]
    return Discovery(configuration, discover_engines(), updater, DnsSource, (), Journal())


@pytest.mark.parametrize(
    ("is_worker", "age_seconds", "logged"), [(False, 0, 2), (True, 60, 2), (True, 0, 1)],
    ids=["single process", "worker", "worker after a change"],
)  # fmt: skip
def test_reload_that_confirms_the_configuration_of_a_new_worker_is_not_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, is_worker: bool, age_seconds: float, logged: int
) -> None:
    caplog.set_level("INFO")
    file = tmp_path / "fleet.yaml"
    file.write_text("settings: {}\n")
    os.utime(file, (time.time() - age_seconds,) * 2)
    watch = watch_of(file, is_worker=is_worker)
    for _ in range(2):
        watch.reload_after_change()
    assert caplog.messages == [UNCHANGED] * logged


def test_reload_on_request_is_always_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    file = tmp_path / "fleet.yaml"
    file.write_text("settings: {}\n")
    watch_of(file, is_worker=True).reload()
    assert caplog.messages == [UNCHANGED]


def test_what_needs_a_restart_is_not_in_force(tmp_path: Path) -> None:
    started = Configuration.of(
        Settings(backends=("http://a",), port=1), origins={"BACKENDS": "environment", "PORT": ".env"}
    )
    changed = Configuration.of(
        Settings(backends=("http://b",), port=2), origins={"BACKENDS": ".env", "PORT": "default"}
    )
    discovery = discovery_of(started)
    watch = ConfigWatch(started, lambda: changed, discovery, RequestMetrics(), Journal(), is_worker=True)

    watch.reload()

    assert (watch.in_force.settings.backends, watch.in_force.settings.port) == (("http://b",), 1)
    assert watch.in_force.origins == {"BACKENDS": ".env", "PORT": ".env"}


def test_reloads_are_events(tmp_path: Path) -> None:
    configuration, journal = Configuration.of(Settings()), Journal()
    problems: list[str] = []

    def load() -> Configuration:
        if problems:
            raise SettingsError(problems)
        return configuration

    watch = ConfigWatch(configuration, load, discovery_of(configuration), RequestMetrics(), journal)
    watch.reload()
    problems += ["PORT is 'x'", "HOST is 'y'"]
    watch.reload()

    assert [(event.severity, event.text) for event in journal.since()] == [
        ("info", "The settings were read again, and the fleet is unchanged."),
        ("error", "The changed settings cannot be used, and the fleet is unchanged: PORT is 'x'; HOST is 'y'."),
    ]


def _no_backend(config: BackendConfig) -> SimpleNamespace:
    """As much of a backend as joins a fleet without observers."""
    connections = SimpleNamespace(keep_alive=lambda **_: None, close=lambda: None)
    return SimpleNamespace(url=config.url, config=config, connections=connections, load=SimpleNamespace(leases=0))
