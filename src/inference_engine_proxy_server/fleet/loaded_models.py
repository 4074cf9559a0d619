"""The load of each model of a backend that holds only some of its models in memory, and which one may be loaded next.

llama.cpp's router ends the least recently used model when it must load another one and has as many as it may have.
Older builds end it even while it answers requests (llama.cpp#21678); newer ones wait until it is idle. In both,
requests for two models that arrive in turn make the router load a model for each of them. So requests are grouped:

* A model in memory keeps its place while it has requests, running or waiting.
* If a request for another model waits, this lasts for one *turn* at most. Then the model gets no new requests, and
  makes room when its running requests have ended.
* Of several models that are waited for, the one with the oldest request is loaded.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from inference_engine_proxy_server.backends.base import ModelEntry, ModelReport
from inference_engine_proxy_server.fleet.backend_load import BackendLoad
from inference_engine_proxy_server.fleet.model_load import ModelLoad
from inference_engine_proxy_server.fleet.serving import names_of
from inference_engine_proxy_server.processes.shared_leases import SharedLeases

__all__ = ["LoadedModels", "SwapRules"]


@dataclass(frozen=True, slots=True)
class SwapRules:
    """How models take turns.

    Attributes:
        turn_seconds: how long a loaded model gets new requests while a request for another model waits.
        clock: a monotonic clock, in seconds.
        shared_leases: the counts of all workers; ``None`` if there is one process.
        worker: the number of this worker.
    """

    turn_seconds: float = 10.0
    clock: Callable[[], float] = time.monotonic
    shared_leases: SharedLeases | None = None
    worker: int = 0


class LoadedModels:
    """The models of one backend.

    Args:
        url: base URL of the backend.
        whole: the load of the backend, which includes that of each model.
        rules: how models take turns.

    Attributes:
        places: models that fit into memory; infinite if there is no limit, or none is known.
        loads: requests of this worker that made the backend load a model.
    """

    def __init__(self, url: str, whole: BackendLoad, rules: SwapRules) -> None:
        self.places = math.inf
        self.loads = 0
        self._url = url
        self._whole = whole
        self._rules = rules
        self._uses = itertools.count(1)
        self._by_id: dict[str, ModelLoad] = {}
        self._by_name: dict[str, ModelLoad] = {}

    def __repr__(self) -> str:
        held = [load.model for load in self._by_id.values() if load.in_memory]
        return f"<LoadedModels {held} of {len(self._by_id)}, {self.places} places>"

    @property
    def all(self) -> Iterable[ModelLoad]:
        """The load of each model."""
        return self._by_id.values()

    def find(self, name: str) -> ModelLoad | None:
        """The load of the model with this name or alias; ``None`` if the backend does not list it."""
        return self._by_name.get(name)

    # --- reports

    def adopt_list(self, entries: Iterable[ModelEntry]) -> None:
        """The backend has the models ``entries``. Those that it has no more are forgotten."""
        known, self._by_id, self._by_name = self._by_id, {}, {}
        for entry in entries:
            model = entry["id"]
            load = (
                self._by_id.get(model)
                or known.get(model)
                or ModelLoad(model, self._whole, self._note_change, *self._rows(model))
            )
            self._by_id[model] = load
            for name in names_of(entry):
                self._by_name.setdefault(name, load)

    def begin_poll(self) -> None:
        """A poll was sent: its answer includes at most the requests that are open now, or when it arrives."""
        for load in self._by_id.values():
            load.own_when_asked = load.proxy_leases

    def adopt(
        self,
        reports: Mapping[str, ModelReport],
        places: float | None,
        capacity: int | None,
        allowance: int,
        asked_at: float,
    ) -> None:
        """Adopt what the backend reports of its models.

        Args:
            reports: by the ids of the models.
            places: models that it holds in memory at most; ``None``: as before.
            capacity: the configured slots of each model, in place of reported ones.
            allowance: requests that each model may have beyond its slots.
            asked_at: when the poll was sent. What changed after that is newer than the report.
        """
        self.places = self.places if places is None else places
        now = self._rules.clock()
        for model, report in reports.items():
            load = self._by_id.get(model)
            if load is None:
                continue
            load.status = report.status
            load.set_slots(capacity or report.capacity, allowance)
            reported = None
            if report.requests_processing is not None:
                reported = report.requests_processing + (report.requests_waiting or 0.0)
            load.set_reported(reported)
            if load.changed_at < asked_at:
                load.adopt_memory(report, now)
        self._whole.set_foreign(sum(load.foreign for load in self._by_id.values()))
        self.review()

    def forget_reported_load(self) -> None:
        """The last reports are too old to count."""
        for load in self._by_id.values():
            load.set_foreign(0.0)

    # --- turns

    def review(self) -> None:
        """Decide which models get requests now (:attr:`ModelLoad.is_admitted`)."""
        held = self._held()
        if len(held) < self.places:
            for load in self._by_id.values():
                load.is_admitted = True
            return
        now = self._rules.clock()
        waits = {load: load.waits_since(now) for load in self._by_id.values() if load not in held}
        next_wait = min(waits.values(), default=math.inf)
        # The backend itself picks the one to end by the time of the last request. Older builds end it even if it is
        # busy and another one is idle.
        last = min(held, key=lambda load: load.used)
        is_over = now - max(last.ready_since, next_wait) >= self._rules.turn_seconds
        has_room = _is_unused(last, now) or (is_over and not last.proxy_leases)  # whatever others send there directly
        for load in held:
            load.is_admitted = load is not last or not is_over
        for load, wait in waits.items():
            load.is_admitted = has_room and wait == next_wait

    def must_make_room_for(self, load: ModelLoad) -> bool:
        """Whether the backend must end another model to load this one."""
        held = self._held()
        return load not in held and len(held) >= self.places

    def _held(self) -> list[ModelLoad]:
        """The models in memory, as far as they fit: the backend has yet to end those that do not, or is about to."""
        held = [load for load in self._by_id.values() if load.in_memory or load.proxy_leases]
        if len(held) <= self.places:
            return held
        held.sort(key=lambda load: (load.proxy_leases > 0, load.used), reverse=True)
        return held[: int(self.places)]

    def _note_change(self, load: ModelLoad, change: int) -> None:
        """A request for ``load`` began or ended."""
        now = self._rules.clock()
        if change < 0:
            load.ready_since = min(load.ready_since, now)
            return
        if not load.in_memory:
            self._note_loading(load, now)
        load.used = next(self._uses)

    def _note_loading(self, load: ModelLoad, now: float) -> None:
        self.loads += load.proxy_leases == 1  # else another worker has caused it
        load.enter_memory(now)
        for other in self._by_id.values():
            if other.in_memory and other not in self._held():
                other.leave_memory(now)

    def _rows(self, model: str) -> tuple[memoryview | None, memoryview | None, int]:
        shared = self._rules.shared_leases
        if shared is None:
            return None, None, 0
        leases, waiting = shared.rows_of_model(self._url, model)
        return leases, waiting, self._rules.worker


def _is_unused(load: ModelLoad, now: float) -> bool:
    return not load.total and load.waits_since(now) == math.inf
