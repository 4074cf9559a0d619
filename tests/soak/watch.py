"""What is sampled while the proxy runs, and what must hold of it all the time."""

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
_TOLERANCE = 2  # requests: what operators and the probe of /livez ask is not among the clients' own
_PROBE_SECONDS = 0.25
_PROBE_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Metrics:
    """A page of the proxy's ``/metrics``.

    Attributes:
        in_flight: requests that clients have, this page's own excepted.
        on_backends: requests that backends have.
        queued: requests that wait.
        states: of each backend, by its base URL.
        ready: backends that take requests.
        shed: requests refused for want of room.
        retries: requests that were repeated, by reason.
    """

    in_flight: int
    on_backends: int
    queued: int
    states: dict[str, str]
    ready: frozenset[str]
    shed: int
    retries: Counter[str]


async def read_metrics(port: int) -> Metrics:
    """The page as it is now."""
    return await asyncio.to_thread(_read_metrics, port)


async def read_doubts(port: int) -> dict[str, str]:
    """Base URLs of the backends that are not up, each with its state and the reason for it."""
    page = json.loads(await asyncio.to_thread(_get, port, "/health", _PROBE_PATIENCE_SECONDS))
    return {one["backend"]: f"{one['state']}: {one['reason']}" for one in page["details"] if one["state"] != "up"}


def _read_metrics(port: int) -> Metrics:
    page = _get(port, "/metrics", _PROBE_PATIENCE_SECONDS)
    sums: dict[str, float] = {}
    states, ready, retries = {}, set(), Counter[str]()
    for name, labels, value in _SAMPLE.findall(page):
        short = name.removeprefix("inference_proxy_")
        sums[short] = sums.get(short, 0.0) + float(value)
        told = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        if short == "backend_state" and float(value):
            states[told["backend"]] = told["state"]
        if short == "backend_ready" and float(value):
            ready.add(told["backend"])
        if short == "retries_total":
            retries[told["reason"]] = int(float(value))
    return Metrics(
        in_flight=int(sums["client_requests_in_flight"]) - 1,
        on_backends=int(sums.get("requests_in_flight", 0)),
        queued=int(sums["queue_requests"]),
        states=states,
        ready=frozenset(ready),
        shed=int(sums.get("shed_total", 0)),
        retries=retries,
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
    """Asks ``/livez`` again and again, in a thread of its own.

    Attributes:
        worst_seconds: the longest wait for its answer.
        worst_fair_seconds: the same, of those times when this thread itself was not late.
        late_seconds: how late this thread was at worst: what the machine, not the proxy, is to blame for.
        failures: why there was no answer.
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
        """The longest wait since this was last asked."""
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
    """What is looked at every two seconds.

    Attributes:
        resident: time and bytes of memory.
        broken_invariants: what did not hold twice in a row.
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

    @property
    def retries(self) -> Counter[str]:
        return Counter() if self.last is None else self.last.retries

    async def take(self) -> None:
        """Look once."""
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
    """The slope of the line that fits them best; 0 for fewer than three."""
    if len(samples) < 3:
        return 0.0
    mean_x = sum(x for x, _ in samples) / len(samples)
    mean_y = sum(y for _, y in samples) / len(samples)
    spread = sum((x - mean_x) ** 2 for x, _ in samples)
    return sum((x - mean_x) * (y - mean_y) for x, y in samples) / spread
