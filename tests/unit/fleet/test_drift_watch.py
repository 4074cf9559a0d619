"""Differences appear and disappear as backends report, join and leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from inference_engine_proxy_server.backends.base import BackendState
from inference_engine_proxy_server.backends.fingerprint import Fingerprint
from inference_engine_proxy_server.fleet import drift_watch
from inference_engine_proxy_server.fleet.difference import Aspect, Difference
from inference_engine_proxy_server.fleet.drift import Replica, differences
from inference_engine_proxy_server.fleet.drift_watch import DriftWatch
from inference_engine_proxy_server.telemetry.journal import Journal
from support.clocked_pool import LOADING, Clock, make_pool, publish, ready
from support.pools import Pool

TEMPLATE = Aspect.TEMPLATE


def reporting(template: str, slots: int | None = None) -> BackendState:
    models = ({"id": "m", "object": "model"},)
    return replace(ready(), models=models, fingerprints={"m": Fingerprint(template=template, slots=slots)})


class Watched:
    def __init__(self, count: int) -> None:
        self.clock, self.journal = Clock(), Journal()
        self.pool: Pool = make_pool(self.clock, count)
        DriftWatch(self.pool.fleet, self.journal)

    def report(self, *templates: str) -> None:
        for at, template in enumerate(templates):
            publish(self.pool, at, reporting(template))

    @property
    def aspects(self) -> list[Aspect]:
        return [one.aspect for one in self.pool.fleet.snapshot().differences]

    @property
    def events(self) -> list[tuple[str, str]]:
        return [(event.severity, event.text) for event in self.journal.since() if event.kind == "drift"]


def test_a_difference_appears_and_disappears(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", drift_watch.__name__)
    watched = Watched(2)
    watched.report("t", "t")
    assert (watched.aspects, watched.events) == ([], [])

    watched.report("t", "u")
    watched.report("t", "u")
    assert watched.aspects == [TEMPLATE]
    [(severity, text)] = watched.events
    assert severity == "warning"
    assert text.startswith("127.0.0.1:1 has the chat template t for m; 127.0.0.1:2 has the chat template u: the model")
    assert caplog.messages == [text]

    watched.report("t", "t")
    assert watched.aspects == []
    assert watched.events[1:] == [("info", "The backends of m no longer differ in their template.")]


def test_a_note_is_no_warning() -> None:
    watched = Watched(2)
    for at in range(2):
        publish(watched.pool, at, reporting("t", slots=at + 1))
    assert [severity for severity, _ in watched.events] == ["info"]


def test_a_backend_that_is_down_keeps_its_facts() -> None:
    watched = Watched(2)
    watched.report("t", "u")
    publish(watched.pool, 1, LOADING)
    watched.pool.fleet.report_refusal(watched.pool.backends[1])
    assert watched.aspects == [TEMPLATE]


def test_a_difference_ends_when_the_backend_leaves() -> None:
    watched = Watched(2)
    watched.report("t", "u")
    [stays, leaves] = watched.pool.backends
    watched.pool.fleet.replace([stays])
    assert watched.aspects == []
    for template in ("u", "v"):  # its last poll is answered after it has left
        watched.pool.fleet.publish(leaves, reporting(template), own_at_poll=0, asked_at=watched.clock.now)
    assert watched.aspects == []


def test_comparisons_take_a_small_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(2)

    def slow(replicas: Sequence[Replica]) -> tuple[Difference, ...]:
        watched.clock.now += 0.1
        return differences(replicas)

    monkeypatch.setattr(drift_watch, "differences", slow)
    watched.report("t")
    began = watched.clock.now
    watched.report("t", "u")
    assert watched.aspects == []
    while not watched.aspects:
        watched.clock.now += 0.5
        watched.report("t")
    assert 2.0 <= watched.clock.now - began < 3.0
