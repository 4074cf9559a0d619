"""How long requests wait for two models that take turns in the memory of one llama.cpp router, by the length of a turn.

``python benchmarks/simulation/model_turns.py`` simulates the rules of the proxy (``fleet/loaded_models.py``) on a
virtual clock, and prints one line for each time that a model takes to load and each value of
``MODEL_SWAP_WAIT_SECONDS``.
"""

from __future__ import annotations

import heapq
import itertools
import random
import statistics
from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from inference_engine_proxy_server.backends.base import ModelReport
from inference_engine_proxy_server.fleet.backend_load import BackendLoad
from inference_engine_proxy_server.fleet.loaded_models import LoadedModels, SwapRules

_SLOTS = 4
_ANSWER_SECONDS = 5.0  # mean of an exponential distribution
_REQUESTS = 4000
_MODELS = ("a", "b")
_LOADS = (1.0, 3.0, 10.0)
_TURNS = (0.0, 2.0, 5.0, 10.0, 20.0, 40.0)
_UTILIZATION = 0.3  # of the slots of one model, by both models together


class Outcome(NamedTuple):
    """What one simulated run showed: the waits until a request has its slot in a loaded model, and the loads."""

    waits: Sequence[float]
    loads: int
    seconds: float


class Simulation:
    """One router with room for one model, and requests for two."""

    def __init__(self, load_seconds: float, turn_seconds: float, seed: int) -> None:
        self._now = 0.0
        self._load_seconds = load_seconds
        self._models = LoadedModels("http://router", BackendLoad(), SwapRules(turn_seconds, lambda: self._now))
        self._models.adopt_list([{"id": name} for name in _MODELS])
        self._loads = {load.model: load for load in self._models.all}
        report = ModelReport("unloaded", in_memory=False, is_ready=False, capacity=_SLOTS)
        self._models.adopt(dict.fromkeys(_MODELS, report), 1, None, 0, 0.0)
        self._random = random.Random(seed)
        self._queues: dict[str, deque[tuple[float, object]]] = {name: deque() for name in _MODELS}
        self._ready_at = dict.fromkeys(_MODELS, 0.0)
        self._events: list[tuple[float, int, str, str]] = []
        self._numbers = itertools.count()
        self._waits: list[float] = []

    def run(self) -> Outcome:
        """Simulate all requests."""
        for at, name in self._arrivals():
            self._schedule(at, "arrival", name)
        while self._events:
            self._now, _, kind, name = heapq.heappop(self._events)
            load = self._loads[name]
            if kind == "arrival":
                token = object()
                self._queues[name].append((self._now, token))
                load.begin_wait(token, self._now)
            elif kind == "end":
                load.leases -= 1
            self._dispatch()
        return Outcome(self._waits, self._models.loads, self._now)

    def _arrivals(self) -> Iterator[tuple[float, str]]:
        rate = _UTILIZATION * _SLOTS / _ANSWER_SECONDS
        at = 0.0
        for _ in range(_REQUESTS):
            at += self._random.expovariate(rate)
            yield at, self._random.choice(_MODELS)

    def _schedule(self, at: float, kind: str, name: str) -> None:
        heapq.heappush(self._events, (at, next(self._numbers), kind, name))

    def _dispatch(self) -> None:
        self._models.review()
        # The proxy tries the heads of all lanes, the longest wait first.
        for name in sorted(_MODELS, key=lambda name: self._queues[name][0][0] if self._queues[name] else self._now):
            load, queue = self._loads[name], self._queues[name]
            while queue and load.is_admitted and load.total < load.limit:
                came_at, token = queue.popleft()
                if not load.in_memory:
                    self._ready_at[name] = self._now + self._load_seconds
                load.leases += 1
                load.end_wait(token)
                self._models.review()
                begins = max(self._now, self._ready_at[name])
                self._waits.append(begins - came_at)
                self._schedule(begins + self._random.expovariate(1 / _ANSWER_SECONDS), "end", name)


def main() -> None:
    """Print the table."""
    print("load s  turn s  loads/request  wait s: mean  p50  p99  longest")
    for load_seconds, turn_seconds in itertools.product(_LOADS, _TURNS):
        found = Simulation(load_seconds, turn_seconds, seed=1).run()
        cuts = statistics.quantiles(found.waits, n=100)
        print(
            f"{load_seconds:6g}  {turn_seconds:6g}  {found.loads / _REQUESTS:13.3f}  "
            f"{statistics.fmean(found.waits):12.1f}  {cuts[49]:.1f}  {cuts[98]:.1f}  {max(found.waits):.1f}"
        )


if __name__ == "__main__":
    main()
