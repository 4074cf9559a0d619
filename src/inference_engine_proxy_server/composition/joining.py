"""Builds what lets backends join and leave while the proxy runs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from fastapi import APIRouter

from inference_engine_proxy_server.backends.registry import Engines
from inference_engine_proxy_server.config.added_backends import (
    AddedBackendsError,
    DescriptionError,
    config_of,
    read_added_backends,
    write_added_backends,
)
from inference_engine_proxy_server.config.configuration import Configuration
from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.config.sources import ENV_FILE, SettingsError, variables_of
from inference_engine_proxy_server.discovery.discovery import Discovery
from inference_engine_proxy_server.discovery.joined import AddedBackends, AnnouncedBackends, ConfigOf
from inference_engine_proxy_server.discovery.source import Source
from inference_engine_proxy_server.endpoints.admin import described
from inference_engine_proxy_server.endpoints.all_workers import AllWorkers, SiblingAnswers
from inference_engine_proxy_server.endpoints.fleet_changes import FleetChanges
from inference_engine_proxy_server.endpoints.joining import joining_router
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.departures import Departures
from inference_engine_proxy_server.fleet.fleet import Fleet
from inference_engine_proxy_server.fleet.fleet_updater import check_engines
from inference_engine_proxy_server.fleet.snapshot import BackendSnapshot
from inference_engine_proxy_server.processes.process_context import ProcessContext
from inference_engine_proxy_server.processes.roster import Command, Entry, Roster

__all__ = ["build_config_of", "build_joining_router", "build_joining_sources", "build_roster"]


def build_roster(settings: Settings, engines: Engines) -> Roster:
    """The backends that operators have added before, and what saves them.

    Raises:
        SettingsError: the file that keeps them cannot be used.
        UnknownEngineError: it names an unknown engine.
    """
    if settings.dynamic_backends_file is None:
        return Roster()
    file = Path(settings.dynamic_backends_file)
    try:
        entries = read_added_backends(file)
        configs = [config_of(entry, _variables(entry), None) for entry in entries]
    except (AddedBackendsError, DescriptionError) as error:
        text = f"{file}: {error}" if isinstance(error, DescriptionError) else str(error)
        raise SettingsError([text]) from None
    check_engines(configs, engines)
    return Roster(entries, partial(write_added_backends, file))


def build_config_of(configuration: Callable[[], Configuration]) -> ConfigOf:
    """The function that configures a backend from an entry of the roster; ``configuration``: what is in force."""

    def configured(entry: Entry) -> BackendConfig:
        return config_of(entry, _variables(entry), configuration().settings.backend_api_key)

    return configured


def _variables(entry: Entry) -> dict[str, str]:
    """The variables that ``entry`` may need."""
    return variables_of(os.environ, ENV_FILE) if "api_key_env" in entry else {}


def build_joining_sources(settings: Settings, process: ProcessContext, config_of: ConfigOf) -> Sequence[Source]:
    """The sources of the backends that have joined, as far as the settings let any join."""
    sources: list[Source] = []
    shares = settings.state_url is not None
    if settings.admin_key is not None or settings.dynamic_backends_file is not None or shares:
        sources.append(AddedBackends(process.roster, config_of))
    if settings.announce_key is not None or shares:
        sources.append(AnnouncedBackends(process.roster, config_of, time.monotonic))
    return sources


def build_joining_router(
    settings: Settings,
    fleet: Fleet,
    discovery: Discovery,
    departures: Departures,
    workers: AllWorkers,
    process: ProcessContext,
    config_of: ConfigOf,
    engines: Engines,
    change_roster: Callable[[Command], None],
) -> APIRouter:
    """The endpoints by which backends join and leave; ``change_roster`` sends a change to all workers and replicas."""
    changes = FleetChanges(fleet, discovery, departures, workers, process.roster, change_roster, config_of, engines)

    def describe(backend: Backend, siblings: SiblingAnswers) -> dict[str, object]:
        row = described(BackendSnapshot.of(backend, fleet.clock()), siblings)
        return {**row, "source": discovery.source_of(backend.url)}

    return joining_router(
        changes, workers, describe, discovery.source_of, saves=settings.dynamic_backends_file is not None
    )
