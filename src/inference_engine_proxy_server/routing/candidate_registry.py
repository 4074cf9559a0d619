"""The candidates of a fleet: one for each backend, and the set of those that serve a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from inference_engine_proxy_server.backends.base import ModelNames
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.routing.candidate import Candidate
from inference_engine_proxy_server.routing.candidate_set import CandidateSet
from inference_engine_proxy_server.routing.context_fit import contexts_of, differ_somewhere

__all__ = ["CandidateRegistry"]

_REMEMBERED_MODELS = 1024  # model names from requests, each with its candidates


class CandidateRegistry:
    """The candidates of a fleet.

    Args:
        clock: a monotonic clock, in seconds.

    Attributes:
        sets: the live backends that serve a model, by the name of the model, as far as requests have asked for it.
        candidates: a candidate for each backend, in the order of the fleet.
        contexts_differ: whether live backends serve the same model with contexts of different lengths.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.sets: dict[str | None, CandidateSet] = {}
        self.candidates: tuple[Candidate, ...] = ()
        self.contexts_differ = False
        self._clock = clock
        self._numbers = 0
        self._candidates: dict[Backend, Candidate] = {}  # by backend

    def get(self, backend: Backend) -> Candidate | None:
        """The candidate for ``backend``; ``None`` if it has left the fleet."""
        return self._candidates.get(backend)

    def replace(self, backends: Sequence[Backend]) -> None:
        """Let ``backends`` be the fleet. What was learned about those that stay is kept."""
        self.forget_sets()
        known, self._candidates = self._candidates, {}
        for backend in backends:
            self._candidates[backend] = known.get(backend) or self.new_candidate(backend)
        self.candidates = tuple(self._candidates.values())

    def new_candidate(self, backend: Backend) -> Candidate:
        """A candidate for ``backend``, with a number that no other has."""
        candidate = Candidate(backend, self._numbers)
        candidate.review(self._clock())
        self._numbers += 1
        return candidate

    def forget_sets(self) -> None:
        """Find all sets again when they are needed: a backend's models changed, or its liveness."""
        self.sets.clear()
        for candidate in self.candidates:
            candidate.leave_all()

    def compare_contexts(self) -> None:
        """Bring ``contexts_differ`` up to date."""
        self.contexts_differ = differ_somewhere(one.backend for one in self.candidates if one.backend.is_live)

    def find_set(self, model: str | None) -> CandidateSet:
        """The live backends that serve ``model``, added to ``sets``.

        A name that a live backend lists goes to backends that list it. Any other name goes to backends that answer to
        any name, or are not known to be strict.
        """
        found = [one for one in self.candidates if one.backend.is_live]
        if model is not None:
            found = [one for one in found if model in one.backend.serving.model_ids] or [
                one for one in found if one.backend.serving.model_names is not ModelNames.STRICT
            ]
        if len(self.sets) >= _REMEMBERED_MODELS:
            self.forget_sets()
        candidates, contexts = tuple(found), contexts_of([one.backend for one in found], model)
        same = (known for known in self.sets.values() if (known.candidates, known.contexts) == (candidates, contexts))
        self.sets[model] = known = next(same, None) or CandidateSet.kept_up_to_date(candidates, contexts)
        return known
