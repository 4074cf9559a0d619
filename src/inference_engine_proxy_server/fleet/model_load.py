"""The load of one model of a backend that loads and unloads its models."""

from __future__ import annotations

import math
from collections.abc import Callable

from inference_engine_proxy_server.backends.base import ModelReport
from inference_engine_proxy_server.fleet.backend_load import BackendLoad

__all__ = ["ModelLoad"]


class ModelLoad(BackendLoad):
    """The requests for one model of one backend, running and waiting.

    Args:
        model: id of the model.
        whole: the load of the backend, which includes these requests.
        on_change: called when a request begins or ends, with the change of their number.
        row: requests of each worker; ``None`` if there is one process.
        waiting_row: waiting requests of each worker, likewise.
        worker: the number of this worker.

    Attributes:
        status: the latest one that the backend reported.
        in_memory: the backend has loaded the model or is loading it.
        is_admitted: it gets requests now, as far as it has free slots.
        ready_since: when it began to serve requests; infinite while it is loaded or not in memory.
        changed_at: when ``in_memory`` last changed because of a request.
        used: rank by the last request: the lowest was used least recently.
        own_when_asked: requests of this proxy when the current poll was sent.
    """

    __slots__ = (
        "_leases", "_on_change", "_others_wait_since", "_row", "_waiting", "_waiting_row", "_whole", "_worker",
        "changed_at", "in_memory", "is_admitted", "model", "own_when_asked", "ready_since", "status", "used",
    )  # fmt: skip

    def __init__(
        self,
        model: str,
        whole: BackendLoad,
        on_change: Callable[[ModelLoad, int], None],
        row: memoryview | None = None,
        waiting_row: memoryview | None = None,
        worker: int = 0,
    ) -> None:
        self.model = model
        self.status = "unknown"
        self.in_memory = False
        self.is_admitted = True
        self.ready_since = math.inf
        self.changed_at = -math.inf
        self.used = 0
        self.own_when_asked = 0
        self._whole = whole
        self._on_change = on_change
        self._row = row
        self._waiting_row = waiting_row
        self._worker = worker
        self._leases = 0
        self._waiting: dict[object, float] = {}  # when each waiting request began to wait, the oldest first
        self._others_wait_since = math.inf
        super().__init__()

    def __repr__(self) -> str:
        memory = "in memory" if self.in_memory else "not in memory"
        return f"<ModelLoad of {self.model!r} {memory}, {self.leases} leases, {self.waiting} waiting>"

    # --- running requests

    @property
    def leases(self) -> int:
        """Requests of this worker."""
        return self._leases

    @leases.setter
    def leases(self, count: int) -> None:
        change = count - self._leases
        self._leases = count
        if not change:
            return
        self._whole.leases += change
        if self._row is not None:
            self._row[self._worker] += change
        self._on_change(self, change)

    @property
    def total(self) -> float:
        """All requests for the model, as of now."""
        return self.foreign + self.proxy_leases

    @property
    def proxy_leases(self) -> int:
        """The requests of all workers of this proxy, as of now."""
        return self._leases if self._row is None else sum(self._row)

    def count_others(self) -> None:
        """Update ``others``: other workers change their counts without notice."""
        self.others = self.foreign + self.proxy_leases - self._leases

    def set_reported(self, requests: float | None) -> None:
        """The backend has ``requests`` for the model; ``None``: unknown."""
        own = max(self.own_when_asked, self.proxy_leases)
        self.set_foreign(0.0 if requests is None else max(0.0, requests - own))

    # --- waiting requests

    @property
    def waiting(self) -> int:
        """Requests of all workers that wait for the model here."""
        return len(self._waiting) if self._waiting_row is None else sum(self._waiting_row)

    def begin_wait(self, request: object, now: float) -> None:
        """``request`` waits for a slot."""
        self._waiting[request] = now
        self._publish_waiting()

    def end_wait(self, request: object) -> None:
        """``request`` waits no more."""
        del self._waiting[request]
        self._publish_waiting()

    def waits_since(self, now: float) -> float:
        """When the oldest waiting request began to wait, here or in another worker; infinite when none waits."""
        own = next(iter(self._waiting.values()), math.inf)
        if self._waiting_row is None:
            return own
        others_wait = sum(self._waiting_row) > len(self._waiting)
        self._others_wait_since = min(self._others_wait_since, now) if others_wait else math.inf
        return min(own, self._others_wait_since)

    def _publish_waiting(self) -> None:
        if self._waiting_row is not None:
            self._waiting_row[self._worker] = len(self._waiting)

    # --- memory

    def enter_memory(self, now: float) -> None:
        """A request makes the backend load the model."""
        self.in_memory = True
        self.ready_since = math.inf
        self.changed_at = now

    def leave_memory(self, now: float) -> None:
        """The backend must give the place of the model to another one."""
        self.in_memory = False
        self.ready_since = math.inf
        self.changed_at = now

    def adopt_memory(self, report: ModelReport, now: float) -> None:
        """The backend reports where the model is. Running requests keep it in memory: they make the backend load it."""
        self.in_memory = report.in_memory or self.proxy_leases > 0
        if not self.in_memory:
            self.ready_since = math.inf
        elif report.is_ready:
            self.ready_since = min(self.ready_since, now)
