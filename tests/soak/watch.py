"""Samples the running proxy and checks invariants."""

from __future__ import annotations

import asyncio
import http.client
import json
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from soak.exchange import OpenRequests
from soak.proxy import Proxy

__all__ = ["LivezProbe", "Metrics", "Samples", "read_doubts", "read_metrics", "slope"]

_SAMPLE = re.compile(r"^(inference_proxy_\w+)(?:\{([^}]*)\})? (\S+)$", re.MULTILINE)
_COUNTED = ("retries_total", "stream_resumes_total", "stream_resume_refusals_total")
_TOLERANCE = 2  # requests of operators and of the /livez probe, which clients do not count
_PROBE_SECONDS = 0.25
_PROBE_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Metrics:
    """The figures of the proxy's ``/metrics``.

    Attributes:
        in_flight: client requests, without this one for ``/metrics``.
        on_backends: requests on backends.
        queued: waiting requests.
        states: state of each backend by base URL.
        ready: number of backends that take requests.
        shed: requests refused because of overload.
        retries: repeated requests by reason.
        resumes: resumed streams by the fault. refusals: broken ones that were not resumed, by the rule.
    """

    in_flight: int
    on_backends: int
    queued: int
    states: dict[str, str]
    ready: frozenset[str]
    shed: int
    retries: Counter[str]
    resumes: Counter[str]
    refusals: Counter[str]


async def read_metrics(port: int) -> Metrics:
    """The current figures."""
    return await asyncio.to_thread(_read_metrics, port)


async def read_doubts(port: int) -> dict[str, str]:
    """The backends that are not up: state and reason by base URL."""
    page = json.loads(await asyncio.to_thread(_get, port, "/health", _PROBE_PATIENCE_SECONDS))
    return {one["backend"]: f"{one['state']}: {one['reason']}" for one in page["details"] if one["state"] != "up"}


def _read_metrics(port: int) -> Metrics:
    page = _get(port, "/metrics", _PROBE_PATIENCE_SECONDS)
    sums: dict[str, float] = {}
    states, ready = {}, set()
    counts: dict[str, Counter[str]] = {name: Counter() for name in _COUNTED}
    for name, labels, value in _SAMPLE.findall(page):
        short = name.removeprefix("inference_proxy_")
        sums[short] = sums.get(short, 0.0) + float(value)
        fields = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if short == "backend_state" and float(value):
            states[fields["backend"]] = fields["state"]
        if short == "backend_ready" and float(value):
            ready.add(fields["backend"])
        if short in counts and float(value):
            [label] = fields.values()
            counts[short][label] = int(float(value))
    return Metrics(
        in_flight=int(sums["client_requests_in_flight"]) - 1,
        on_backends=int(sums.get("requests_in_flight", 0)),
        queued=int(sums["queue_requests"]),
        states=states,
        ready=frozenset(ready),
        shed=int(sums.get("shed_total", 0)),
        retries=counts["retries_total"],
        resumes=counts["stream_resumes_total"],
        refusals=counts["stream_resume_refusals_total"],
    )


def _get(port: int, path: str, timeout_seconds: float) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_seconds)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        reply = connection.getresponse()
        text = reply.read().decode()
        if reply.status != 200:
            raise RuntimeError(f"GET {path} was answered with {reply.status}")
        return text
    finally:
        connection.close()


class LivezProbe:
    """Requests ``/livez`` repeatedly in a separate thread.

    Attributes:
        worst_seconds: the longest wait for an answer.
        worst_fair_seconds: the same, only from times at which this thread itself was not late.
        late_seconds: the longest delay of this thread itself, caused by the machine and not by the proxy.
        failures: reasons for missing answers.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._stops = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.worst_seconds = self.worst_fair_seconds = self.late_seconds = self.late_of_late_seconds = 0.0
        self.count = 0
        self.failures: list[str] = []
        self._worst_of_late = 0.0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stops.set()
        if self._thread.is_alive():
            self._thread.join(_PROBE_PATIENCE_SECONDS)

    def worst_of_late(self) -> float:
        """The longest wait since the previous call."""
        worst, self._worst_of_late = self._worst_of_late, 0.0
        return worst

    def _run(self) -> None:
        late_before = self._pause()
        while not self._stops.is_set():
            began = time.monotonic()
            try:
                _get(self._port, "/livez", _PROBE_PATIENCE_SECONDS)
            except (OSError, RuntimeError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
            seconds = time.monotonic() - began
            late_after = self._pause()
            self.count += 1
            self.worst_seconds = max(self.worst_seconds, seconds)
            self._worst_of_late = max(self._worst_of_late, seconds)
            late = max(late_before, late_after)
            self.late_seconds = max(self.late_seconds, late)
            if late < 0.2:
                self.worst_fair_seconds = max(self.worst_fair_seconds, seconds)
            late_before = late_after

    def _pause(self) -> float:
        began = time.monotonic()
        self._stops.wait(_PROBE_SECONDS)
        return max(0.0, time.monotonic() - began - _PROBE_SECONDS)


@dataclass(slots=True)
class Samples:
    """Samples taken every two seconds.

    Attributes:
        resident: times with bytes of resident memory.
        broken_invariants: invariants that failed twice in a row.
    """

    proxy: Proxy
    open_requests: OpenRequests
    resident: list[tuple[float, float]] = field(default_factory=list)
    broken_invariants: list[str] = field(default_factory=list)
    count: int = 0
    most_queued: int = 0
    most_in_flight: int = 0
    most_descriptors: int = 0
    last: Metrics | None = None
    _broken_before: bool = False

    async def take(self) -> None:
        """Take one sample."""
        began = time.monotonic()
        metrics = await read_metrics(self.proxy.port)
        least, most = self.open_requests.bounds(began, time.monotonic())
        self.last = metrics
        self.count += 1
        self.most_queued = max(self.most_queued, metrics.queued)
        self.most_in_flight = max(self.most_in_flight, metrics.in_flight)
        self.most_descriptors = max(self.most_descriptors, self.proxy.descriptors().total())
        self.resident.append((time.monotonic(), float(self.proxy.resident_bytes())))
        self.proxy.read_errors()
        broken = self._broken(metrics, least, most)
        if broken and self._broken_before:
            self.broken_invariants.append(broken)
        self._broken_before = bool(broken)

    def _broken(self, metrics: Metrics, least: int, most: int) -> str:
        if not least - _TOLERANCE <= metrics.in_flight <= most + _TOLERANCE:
            return f"{metrics.in_flight} requests in flight, but clients have {least} to {most} open"
        if metrics.on_backends + metrics.queued > metrics.in_flight + _TOLERANCE:
            return f"{metrics.on_backends} on backends and {metrics.queued} waiting, of {metrics.in_flight} in flight"
        return ""


def slope(samples: list[tuple[float, float]]) -> float:
    """The slope of the least-squares line; 0 for fewer than three points."""
    if len(samples) < 3:
        return 0.0
    mean_x = sum(x for x, _ in samples) / len(samples)
    mean_y = sum(y for _, y in samples) / len(samples)
    spread = sum((x - mean_x) ** 2 for x, _ in samples)
    return sum((x - mean_x) * (y - mean_y) for x, y in samples) / spread
