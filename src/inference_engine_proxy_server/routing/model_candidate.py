"""One model of a backend that loads and unloads its models, as routing sees it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from inference_engine_proxy_server.fleet.loaded_models import LoadedModels
from inference_engine_proxy_server.fleet.model_load import ModelLoad
from inference_engine_proxy_server.routing.balancer import SWAP
from inference_engine_proxy_server.routing.candidate import Candidate

__all__ = ["ModelCandidate", "Wait"]


class ModelCandidate(Candidate):
    """One model of one backend. It has its own load, because it has its own slots.

    Args:
        whole: the backend.
        models: its models.
        load: the load of this model.
        number: as of every candidate.
        siblings: the candidates for all models of the backend. What one model does decides about the others.
    """

    __slots__ = ("_model_load", "_models", "_siblings", "_whole")

    def __init__(
        self, whole: Candidate, models: LoadedModels, load: ModelLoad, number: int, siblings: Iterable[ModelCandidate]
    ) -> None:
        super().__init__(whole.backend, number, whole.tier_penalty_seconds)
        self.load = self._model_load = load
        self._whole = whole
        self._models = models
        self._siblings = siblings

    def __repr__(self) -> str:
        return f"<ModelCandidate {self.number} of {self._model_load!r} on {self.backend!r}>"

    @property
    def whole(self) -> Candidate:
        """The candidate for the backend with all its models."""
        return self._whole

    @property
    def has_slot(self) -> bool:
        """Whether the model has free slots and may use them."""
        return self.is_admitted and super().has_slot

    @property
    def is_admitted(self) -> bool:
        """Whether it is the turn of this model."""
        return self._model_load.is_admitted

    def begin_wait(self, request: object, now: float) -> None:
        """``request`` waits for this model."""
        self._model_load.begin_wait(request, now)
        self.rerank()

    def end_wait(self, request: object) -> None:
        """``request`` waits no more."""
        self._model_load.end_wait(request)
        self.rerank()

    def rank(self) -> float:
        """As of every candidate; higher if another model must be unloaded first."""
        return super().rank() + (SWAP if self._models.must_make_room_for(self._model_load) else 0.0)

    def rerank(self) -> None:
        """Update the ranks of all models of the backend."""
        self._models.review()
        self._whole.rerank()
        for one in self._siblings:
            one.apply_rank()

    def recount(self) -> None:
        """As of every candidate; the rank also follows what other workers wait for."""
        self.load.count_others()
        self.rerank()

    def apply_rank(self) -> None:
        """Update the rank in all rank tables."""
        is_open = self.backend.takes_requests and self.has_slot
        rank = self.rank() if is_open else math.inf
        for ranks, at, handicap in self._positions:
            ranks[at] = rank + handicap


class Wait:
    """The wait of one request for models that take turns, which count it from ``with`` to the end of the block.

    Args:
        candidates: those that may serve the request; the models among them count it.
        clock: a monotonic clock, in seconds.
    """

    __slots__ = ("_clock", "_models")

    def __init__(self, candidates: Iterable[Candidate], clock: Callable[[], float]) -> None:
        self._models = [one for one in candidates if isinstance(one, ModelCandidate)]
        self._clock = clock

    def __enter__(self) -> None:
        for one in self._models:
            one.begin_wait(self, self._clock())

    def __exit__(self, *error: object) -> None:
        for one in self._models:
            one.end_wait(self)
