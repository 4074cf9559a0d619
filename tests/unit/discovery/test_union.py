"""The fleet is the union of the last sets of all sources."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.discovery.union import FleetUnion
from inference_engine_proxy_server.telemetry.journal import Journal


class Site:
    """Two sources.

    Attributes:
        fleets: as they were applied, the latest last.
    """

    def __init__(self) -> None:
        self.fleets: list[list[BackendConfig]] = []
        self.journal = Journal()
        self.union = FleetUnion(self._apply, self.journal)
        self.first, self.second = self.union.member("first"), self.union.member("second")
        self.union.arrange([self.first, self.second])

    def _apply(self, backends: Sequence[BackendConfig]) -> bool:
        self.fleets.append(list(backends))
        return True

    @property
    def urls(self) -> list[str]:
        return [config.url for config in self.fleets[-1]]

    @property
    def events(self) -> list[str]:
        return [event.text for event in self.journal.since()]


def backend(host: str, name: str = "", weight: float = 1) -> BackendConfig:
    return BackendConfig(f"http://{host}:80", name or host, weight=weight)


def test_order_of_the_sources_is_the_order_of_the_fleet() -> None:
    site = Site()
    site.second.found([backend("c")])
    site.first.found([backend("b"), backend("a")])
    assert site.urls == ["http://b:80", "http://a:80", "http://c:80"]


def test_a_source_removes_only_its_own_backends() -> None:
    site = Site()
    site.first.found([backend("a")])
    site.second.found([backend("b")])
    site.first.found([])
    assert site.urls == ["http://b:80"]


def test_settings_of_the_first_source_apply_to_a_backend_of_two(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    site = Site()
    site.second.found([BackendConfig("http://a", "a", weight=2)])
    site.first.found([backend("a", weight=1)])
    site.second.found([BackendConfig("http://a", "a", weight=3)])
    assert [config.weight for config in site.fleets[-1]] == [1]
    assert caplog.messages == ["discovery: http://a is of first and of second; the settings of the first apply"]

    site.first.found([])
    assert [config.weight for config in site.fleets[-1]] == [3]


def test_a_name_that_another_backend_has_is_replaced_by_the_url() -> None:
    site = Site()
    site.first.found([backend("a", "gpu")])
    site.second.found([backend("b", "gpu")])
    assert [config.name for config in site.fleets[-1]] == ["gpu", "http://b:80"]


def test_failure_keeps_the_last_set_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    site = Site()
    site.first.found([backend("a")])
    for _ in range(3):
        site.first.failed("the name server does not answer")
    assert site.urls == ["http://a:80"]
    assert site.first.problem
    assert len(caplog.messages) == 1
    assert site.events == ["Source first: the name server does not answer; its backends stay."]

    site.first.found([backend("a")])
    assert not site.first.problem
    assert site.events[1:] == ["Source first answers again."]


def test_unchanged_set_is_not_applied_again() -> None:
    site = Site()
    site.first.found([backend("a")])
    before = len(site.fleets)
    site.first.found([backend("a")])
    assert len(site.fleets) == before
    assert site.first.answered_at is not None
