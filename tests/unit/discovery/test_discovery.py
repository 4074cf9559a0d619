"""Sources run until cancelled, and the configuration is one of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from inference_engine_proxy_server.backends.registry import discover_engines
from inference_engine_proxy_server.config.configuration import Configuration
from inference_engine_proxy_server.config.fleet import BackendConfig, ModelConfig
from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.discovery.discovery import Discovery
from inference_engine_proxy_server.discovery.dns_source import DnsSource
from inference_engine_proxy_server.discovery.source import SourceReport
from inference_engine_proxy_server.fleet.fleet import Fleet
from inference_engine_proxy_server.fleet.fleet_updater import FleetUpdater, UnknownEngineError
from inference_engine_proxy_server.telemetry.journal import Journal
from support.waiting import eventually


class Announced:
    """A source that finds one backend."""

    name = "announcements"

    def __init__(self) -> None:
        self.starts = 0

    async def run(self, report: SourceReport) -> None:
        self.starts += 1
        report.found([BackendConfig("http://announced:80", "announced")])
        if self.starts == 1:
            raise RuntimeError("crash")
        await asyncio.Event().wait()


class Silent:
    """A source that never reports."""

    name = "silence"

    async def run(self, report: SourceReport) -> None:
        await asyncio.Event().wait()


class Site:
    """A fleet of one configured backend.

    Attributes:
        models: settings of models as they were applied.
    """

    def __init__(self, *sources: Announced | Silent) -> None:
        configuration = configured("http://a")
        self.models: list[object] = []
        self.fleet = Fleet(map(joined, configuration.fleet), 3)  # type: ignore[arg-type]
        updater = FleetUpdater(self.fleet, joined, print, self._take_models, {})  # type: ignore[arg-type]
        self.discovery = Discovery(configuration, discover_engines(), updater, DnsSource, sources, Journal())

    def _take_models(self, models: object, default_model: object) -> None:
        self.models.append(models)

    @property
    def urls(self) -> list[str]:
        return [backend.url for backend in self.fleet.backends]


def configured(*urls: str, described: Sequence[BackendConfig] = (), **models: ModelConfig) -> Configuration:
    return Configuration.of(Settings(backends=urls), described, models)


def joined(config: BackendConfig) -> SimpleNamespace:
    """As much of a backend as a fleet without observers needs."""
    leaving = SimpleNamespace(keep_alive=lambda **_: None, close=lambda: None)
    load = SimpleNamespace(leases=0)
    return SimpleNamespace(url=config.url, config=config, connections=leaving, load=load, configure=lambda _: None)


async def test_reload_keeps_what_other_sources_have_found() -> None:
    site = Site(Announced())
    async with asyncio.timeout(10):
        running = asyncio.get_running_loop().create_task(site.discovery.run())
        await site.discovery.first_reports(10)
    assert site.urls == ["http://a", "http://announced:80"]

    assert site.discovery.apply(configured("http://b"))
    assert site.urls == ["http://b", "http://announced:80"]
    assert not site.discovery.apply(configured("http://b"))
    running.cancel()


async def test_source_that_crashes_is_started_again_and_keeps_its_set(caplog: pytest.LogCaptureFixture) -> None:
    source = Announced()
    site = Site(source)
    running = asyncio.get_running_loop().create_task(site.discovery.run())
    await eventually(lambda: source.starts == 2)
    assert site.urls == ["http://a", "http://announced:80"]
    running.cancel()


async def test_start_does_not_wait_for_ever_for_a_source(caplog: pytest.LogCaptureFixture) -> None:
    site = Site(Silent())
    await site.discovery.first_reports(0.01)
    assert caplog.messages == ["discovery: not every source has answered yet; backends join when it does"]


def test_unknown_engine_changes_nothing() -> None:
    site = Site()
    unknown = BackendConfig("http://b", "b", engine="abacus")
    with pytest.raises(UnknownEngineError, match=r"use one of .*vllm"):
        site.discovery.apply(configured("http://b", described=[unknown], m=ModelConfig("rendezvous")))
    assert site.urls == ["http://a"]
    assert site.models == []
