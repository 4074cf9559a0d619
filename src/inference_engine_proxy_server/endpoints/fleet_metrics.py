"""The state of the fleet and of the queue, for Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from inference_engine_proxy_server import __version__
from inference_engine_proxy_server.dispatch.leases import Dispatcher
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.fleet import Fleet, FleetObserver
from inference_engine_proxy_server.fleet.health import Health
from inference_engine_proxy_server.fleet.snapshot import BackendSnapshot
from inference_engine_proxy_server.routing.learned import BackendLearning
from inference_engine_proxy_server.routing.placement import Placement
from inference_engine_proxy_server.telemetry.exposition import Labels, Sample, family

__all__ = ["FleetMetrics", "LearnedMetrics"]

B = TypeVar("B", BackendSnapshot, BackendLearning)

_Reading = tuple[str, str, str, Callable[[B], float | None]]
"""Name, kind and meaning of a family, and the value of a backend; ``None`` for no sample."""

_BACKENDS: tuple[_Reading[BackendSnapshot], ...] = (
    ("backend_live", "gauge", "1 if the backend works, busy or not.", lambda one: int(one.is_live)),
    ("backend_ready", "gauge", "1 if the backend takes new requests.", lambda one: int(one.takes_requests)),
    ("backend_draining", "gauge", "1 if an operator drains the backend.", lambda one: int(one.is_draining)),
    ("requests_in_flight", "gauge", "Requests of this proxy on the backend now.", lambda one: one.leases),
    ("backend_load", "gauge", "All requests of the backend, as far as known.", lambda one: one.load),
    (
        "backend_requests_running",
        "gauge",
        "Requests that the backend reports to be working on.",
        lambda one: one.reported.requests_processing,
    ),
    (
        "backend_requests_waiting",
        "gauge",
        "Requests that the backend reports in its own queue.",
        lambda one: one.reported.requests_waiting,
    ),
    ("backend_state_timestamp_seconds", "gauge", "When the backend last reported.", lambda one: one.reported_at),
)

_LEARNED: tuple[_Reading[BackendLearning], ...] = (
    (
        "backend_prompt_tokens_total",
        "counter",
        "Prompt tokens of requests whose replies reported cached tokens.",
        lambda one: one.prompt_tokens,
    ),
    (
        "backend_prompt_tokens_predicted_total",
        "counter",
        "Prompt tokens of these requests that were expected in the backend's cache.",
        lambda one: one.predicted_tokens,
    ),
    (
        "backend_prompt_tokens_cached_total",
        "counter",
        "Prompt tokens of these requests that were in the backend's cache, as replies reported.",
        lambda one: one.cached_tokens,
    ),
    ("backend_prompts_reading", "gauge", "Prompts that the backend has not read yet.", lambda one: one.prompts_reading),
    (
        "backend_read_tokens_per_second",
        "gauge",
        "Prompt tokens that the backend reads in a second, as measured.",
        lambda one: one.reads_per_second,
    ),
    (
        "backend_seconds_per_token",
        "gauge",
        "Seconds for a token of each answer, as measured, with as many answers as the backend writes now.",
        lambda one: one.seconds_per_token,
    ),
    (
        "backend_kept_prompt_bytes",
        "gauge",
        "Bytes of prompts that the backend's cache is estimated to keep.",
        lambda one: one.kept_prompt_bytes,
    ),
)

_WORKING = (Health.UP, Health.BUSY)
_EJECTED = (Health.SUSPECT, Health.DOWN)


def _readings(labels: Labels, readings: Iterable[_Reading[B]], backends: Sequence[B]) -> Iterator[str]:
    labelled = [(labels.of(backend=one.url), one) for one in backends]
    for name, kind, text, reading in readings:
        samples = ((label, value) for label, one in labelled if (value := reading(one)) is not None)
        yield from family(f"inference_proxy_{name}", kind, text, samples)


class LearnedMetrics:
    """The knowledge of learning policies; absent while no policy learns."""

    def __init__(self, placement: Placement, labels: Labels) -> None:
        self._placement = placement
        self._labels = labels

    def families(self) -> Iterator[str]:
        """All families, see :data:`~.exposition.Families`."""
        learned = self._placement.learned()
        if learned is None:
            return
        yield from _readings(self._labels, _LEARNED, learned.backends)
        for name, text, value in (
            ("bytes", "Memory of the prefix index.", learned.index_bytes),
            ("runs", "Prompt prefixes in the prefix index.", learned.index_runs),
        ):
            yield from family(f"inference_proxy_prefix_index_{name}", "gauge", text, [(self._labels.of(), value)])


class FleetMetrics(FleetObserver):
    """The backends and the queue."""

    def __init__(self, dispatcher: Dispatcher, labels: Labels) -> None:
        self._fleet: Fleet = dispatcher.fleet
        self._queue = dispatcher.queue
        self._conversations = dispatcher.placement.conversations
        self._labels = labels
        self._states: dict[str, Health] = {}  # by backend, since its last review
        self._ejections: Counter[tuple[str, Health]] = Counter()
        self.on_replaced(self._fleet.backends)
        self._fleet.subscribe(self)

    def on_replaced(self, backends: Sequence[Backend]) -> None:
        """Forget the counts of backends that have left."""
        self._states = {one.url: self._states.get(one.url, one.health.state) for one in backends}
        self._ejections = Counter(
            {(url, state): self._ejections[url, state] for url in self._states for state in _EJECTED}
        )

    def on_reviewed(self, backend: Backend) -> None:
        """Count an ejection."""
        state, before = backend.health.state, self._states.get(backend.url)
        if state is not before and before is not None:
            self._states[backend.url] = state
            if state in _EJECTED and before in _WORKING:
                self._ejections[backend.url, state] += 1

    def families(self) -> Iterator[str]:
        """All families, see :data:`~.exposition.Families`."""
        of, backends = self._labels.of, self._fleet.snapshot().backends
        yield ""
        yield from _readings(self._labels, _BACKENDS, backends)
        yield from family(
            "inference_proxy_backend_state",
            "gauge",
            "1 for the current state of the backend.",
            ((of(backend=one.url, state=state.value), int(one.state is state)) for one in backends for state in Health),
        )
        yield from family(
            "inference_proxy_backend_ejections_total",
            "counter",
            "How often the backend became suspect or down after it had worked.",
            [(of(backend=url, state=state.value), count) for (url, state), count in self._ejections.items()],
        )
        yield from self._differences()
        yield from self._models(backends)
        queue = self._queue
        yield from family(
            "inference_proxy_queue_requests", "gauge", "Requests that wait for a backend.", [(of(), queue.count)]
        )
        refusals: Mapping[str, int] = {"full": queue.rejections, "timeout": queue.timeouts}
        yield from family(
            "inference_proxy_queue_refusals_total",
            "counter",
            "Requests that the queue rejected.",
            [(of(reason=reason), count) for reason, count in refusals.items()],
        )
        yield from family(
            "inference_proxy_turns_kept_warm_total",
            "counter",
            "Turns of conversations that went to the backend of the previous turn, among equally loaded backends.",
            [(of(), self._conversations.kept)],
        )
        version = [(of(version=__version__), 1)]
        yield from family("inference_proxy_build_info", "gauge", "The running version.", version)

    def _differences(self) -> Iterator[str]:
        counts = Counter((url, one.aspect) for one in self._fleet.differences for url in one.urls)
        samples = [
            (self._labels.of(backend=url, aspect=aspect.value), count) for (url, aspect), count in counts.items()
        ]
        text = "Models of the backend that differ in this aspect on other backends."
        if samples:
            yield from family("inference_proxy_backend_differences", "gauge", text, samples)

    def _models(self, backends: Iterable[BackendSnapshot]) -> Iterator[str]:
        """The models of backends that load and unload them. Only models in memory have a sample, so there are few."""
        of = self._labels.of
        requests: list[Sample] = []
        loads: list[Sample] = []
        for backend in backends:
            if backend.models is not None:
                loads.append((of(backend=backend.url), backend.model_loads))
                requests += [
                    (of(backend=backend.url, model=name), model.requests)
                    for name, model in backend.models.items()
                    if model.in_memory
                ]
        if requests:
            text = "Requests for a model that the backend has in memory, as far as known."
            yield from family("inference_proxy_backend_model_requests", "gauge", text, requests)
        if loads:
            text = "Requests that made the backend load a model."
            yield from family("inference_proxy_backend_model_loads_total", "counter", text, loads)
