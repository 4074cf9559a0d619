"""The candidates of a fleet: one for each backend, and the set of those that serve a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from inference_engine_proxy_server.backends.base import ModelNames
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.model_load import ModelLoad
from inference_engine_proxy_server.routing.balancer import COLD
from inference_engine_proxy_server.routing.candidate import Candidate
from inference_engine_proxy_server.routing.candidate_set import CandidateSet
from inference_engine_proxy_server.routing.context_fit import contexts_of, differ_somewhere
from inference_engine_proxy_server.routing.model_candidate import ModelCandidate

__all__ = ["CandidateRegistry"]

_REMEMBERED_MODELS = 1024  # model names from requests, each with its candidates


class CandidateRegistry:
    """The candidates of a fleet.

    Args:
        clock: a monotonic clock, in seconds.
        default_model: the model of requests that name none, if backends differ; ``None`` to choose one.
        tier_penalty_seconds: see :attr:`~.candidate.Candidate.tier_seconds`.

    Attributes:
        sets: the live backends that serve a model, for each model that requests have named.
        candidates: a candidate for each backend, in the order of the fleet.
        models_differ: whether backends list different models; a backend whose models are unknown lists none.
        contexts_differ: whether live backends serve the same model with contexts of different lengths.
    """

    def __init__(
        self, clock: Callable[[], float], default_model: str | None = None, tier_penalty_seconds: float = 0.0
    ) -> None:
        self.sets: dict[str | None, CandidateSet] = {}
        self.candidates: tuple[Candidate, ...] = ()
        self.contexts_differ = False
        self.models_differ = False
        self._default_model = default_model
        self._tier_penalty_seconds = tier_penalty_seconds
        self._all: CandidateSet | None = None  # candidates of every model
        self._unnamed: CandidateSet | None = None  # for requests without a model
        self._clock = clock
        self._numbers = 0
        self._candidates: dict[Backend, Candidate] = {}  # by backend
        self._by_model: dict[Backend, dict[ModelLoad, ModelCandidate]] = {}  # of backends that load and unload models
        self._served_names: dict[str, None] = {}  # that a backend lists or has listed, least recently listed first

    def get(self, backend: Backend) -> Candidate | None:
        """The candidate for ``backend``; ``None`` if it has left the fleet."""
        return self._candidates.get(backend)

    def all_of(self, backend: Backend) -> Sequence[Candidate]:
        """The candidate for ``backend``, and those for its models; empty if it has left the fleet."""
        whole = self._candidates.get(backend)
        return () if whole is None else (whole, *self._by_model.get(backend, {}).values())

    @property
    def has_models(self) -> bool:
        """Whether a backend counts its requests by model."""
        return bool(self._by_model)

    @property
    def everyone(self) -> Sequence[Candidate]:
        """The candidates of all backends and models."""
        return [one for backend in self._candidates for one in self.all_of(backend)]

    def of_model(self, whole: Candidate, model: str | None) -> Candidate:
        """The candidate for ``model`` on the backend of ``whole``, if it counts by model; else ``whole``."""
        models = whole.backend.loaded_models
        load = None if models is None or model is None else models.find(model)
        if models is None or load is None:
            return whole
        siblings = self._by_model.setdefault(whole.backend, {})
        found = siblings.get(load)
        if found is None:
            found = siblings[load] = ModelCandidate(whole, models, load, self._numbers, siblings.values())
            self._numbers += 1
            found.review(self._clock())
        return found

    def replace(self, backends: Sequence[Backend]) -> None:
        """Replace the fleet by ``backends``. What was learned about backends that stay is kept."""
        self.forget_sets()
        known, self._candidates = self._candidates, {}
        for backend in backends:
            self._candidates[backend] = known.get(backend) or self.new_candidate(backend)
        self.candidates = tuple(self._candidates.values())
        self._by_model = {backend: ones for backend, ones in self._by_model.items() if backend in self._candidates}
        for candidate in self.everyone:  # weights and tiers may have changed
            candidate.review(self._clock())
        self.learn_names()

    def new_candidate(self, backend: Backend) -> Candidate:
        """A candidate for ``backend`` with a unique number."""
        candidate = Candidate(backend, self._numbers, self._tier_penalty_seconds)
        self._numbers += 1
        return candidate

    def forget_sets(self) -> None:
        """Discard all sets, because a backend's models or liveness changed; they are rebuilt on demand."""
        self.sets.clear()
        self._all = self._unnamed = None
        for candidate in self.everyone:
            candidate.leave_all()
        for backend, ones in self._by_model.items():
            listed = () if backend.loaded_models is None else backend.loaded_models.all
            for gone in ones.keys() - set(listed):
                del ones[gone]

    def compare_backends(self) -> None:
        """Update ``models_differ`` and ``contexts_differ``."""
        self.models_differ = len({one.backend.serving.model_ids for one in self.candidates}) > 1
        self.contexts_differ = differ_somewhere(one.backend for one in self.candidates if one.backend.is_live)

    def serving(self, model: str | None) -> Sequence[Candidate]:
        """The backends that serve ``model``, live or not; empty when all models are known and none has this name.

        A name that backends list goes only to them, even while they are down. While the models of some backends are
        unknown, any other name goes to these. If all are known, other names go to backends that the configuration marks
        for them, or else to all that accept any name or are not known to be strict. A name that was listed once never
        goes there, because another model would answer. Backends that take any model take all names.
        """
        if model is None:
            model = self.model_of_unnamed()
            if model is None:
                return self.candidates
        if listing := [one for one in self.candidates if model in one.backend.serving.model_ids]:
            return [one for one in self.candidates if one in listing or one.config.takes_any_model]
        if unknown := [one for one in self.candidates if not one.backend.models_known]:
            return [one for one in self.candidates if one in unknown or one.config.takes_any_model]
        if model in self._served_names:
            return [one for one in self.candidates if one.config.takes_any_model]
        marked = [one for one in self.candidates if one.config.accepts_unlisted_models or one.config.takes_any_model]
        return marked or [one for one in self.candidates if one.backend.serving.model_names is not ModelNames.STRICT]

    def model_of_unnamed(self) -> str | None:
        """The model of requests that name none; ``None`` if all backends serve the same models.

        Without a configured default, it is the first model of the first backend whose models are known, and which
        accepts any name if there is such a backend: its clients need not name a model. It is the same in all workers
        and replicas, whichever backends are down.
        """
        if not self.models_differ or self._default_model is not None:
            return self._default_model if self.models_differ else None
        found = [one.backend.serving for one in self.candidates if one.backend.serving.models]
        first = next((one for one in found if one.model_names is ModelNames.ANY), found[0] if found else None)
        return None if first is None else first.models[0]["id"]

    def find_all(self) -> CandidateSet:
        """All live backends, whatever they serve."""
        if self._all is None:
            found = tuple(one for one in self.candidates if one.backend.is_live)
            self._all = CandidateSet.kept_up_to_date(
                found, contexts_of([one.backend for one in found], None), _handicaps(found, None)
            )
        return self._all

    def learn_names(self) -> None:
        """Remember the names that backends list now."""
        names = self._served_names
        for listed in {one.backend.serving.model_ids for one in self.candidates}:  # many list the same
            for name in listed:
                names.pop(name, None)
                names[name] = None
        while len(names) > _REMEMBERED_MODELS:
            del names[next(iter(names))]

    def lists(self, model: str) -> bool:
        """Whether a backend lists ``model``, or has listed it."""
        return model in self._served_names

    def set_default_model(self, model: str | None) -> None:
        """Use ``model`` for requests that name none, see :class:`CandidateRegistry`."""
        self._default_model = model
        self.forget_sets()

    def find_set(self, model: str | None) -> CandidateSet:
        """The live backends that serve ``model``, added to ``sets``; see :meth:`serving`."""
        known = self._unnamed if model is None else self.sets.get(model)
        if known is not None:
            return known
        named = self.model_of_unnamed() if model is None else model
        found = [self.of_model(one, named) for one in self.serving(model) if one.backend.is_live]
        if len(self.sets) >= _REMEMBERED_MODELS:
            self.forget_sets()
        kind = (tuple(found), contexts_of([one.backend for one in found], model), _handicaps(found, model))
        same = (known for known in self.sets.values() if (known.candidates, known.contexts, known.handicaps) == kind)
        known = next(same, None) or CandidateSet.kept_up_to_date(*kind)
        if model is None:
            self._unnamed = known
        else:
            self.sets[model] = known
        return known


def _handicaps(candidates: Sequence[Candidate], model: str | None) -> list[float] | None:
    found = [COLD * one.backend.serving.status_of(model) for one in candidates]
    return found if len(set(found)) > 1 else None
