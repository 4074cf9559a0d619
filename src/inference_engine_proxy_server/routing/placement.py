"""Picks the backend for a request: its policy chooses among the backends that serve its model."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext

import msgspec

from inference_engine_proxy_server.errors import CapacityError, ClientError, ProxyError
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.fleet import Fleet, FleetObserver
from inference_engine_proxy_server.fleet.health import Health
from inference_engine_proxy_server.processes.conversation_memory import ConversationMemory
from inference_engine_proxy_server.requests.prompt import Prompt
from inference_engine_proxy_server.requests.token_sizes import TokenSizes
from inference_engine_proxy_server.routing.affinity import Affinity
from inference_engine_proxy_server.routing.candidate import Candidate
from inference_engine_proxy_server.routing.candidate_registry import CandidateRegistry
from inference_engine_proxy_server.routing.candidate_set import CandidateSet
from inference_engine_proxy_server.routing.choice import Choice, Policy
from inference_engine_proxy_server.routing.context_fit import Need, contexts_of, fitting
from inference_engine_proxy_server.routing.conversations import Conversations
from inference_engine_proxy_server.routing.decisions import TIED, Decision, Ranked
from inference_engine_proxy_server.routing.eligibility import is_for_all, is_open, rank_of
from inference_engine_proxy_server.routing.foreign_trend import ForeignTrend
from inference_engine_proxy_server.routing.learned import LearnedSnapshot
from inference_engine_proxy_server.routing.model_candidate import Wait
from inference_engine_proxy_server.routing.model_policies import ModelPolicies
from inference_engine_proxy_server.routing.paths import PathTable, kind_of
from inference_engine_proxy_server.routing.policies import LEAST_REQUESTS
from inference_engine_proxy_server.routing.prompt_router import PromptRouter
from inference_engine_proxy_server.routing.requirements import Requirements
from inference_engine_proxy_server.routing.tracker import SizeTracker, Tracker

__all__ = ["Placement"]


class Placement(FleetObserver):
    """Picks backends of a fleet. Leases are counted in ``dispatch``, and health is judged in ``fleet``.

    Args:
        fleet: the fleet.
        router: the policies and their knowledge.
        conversations: which backend served them; ``None`` for an empty memory.
        is_shared: other workers also send requests to the backends, so loads are counted again for each choice.
        records_decisions: whether choices carry a decision that explains them.
        retry_after_seconds: when clients should try again if no backend serves their request.
        default_model: the model of requests that name none, if backends differ; ``None`` to choose one.
        tier_penalty_seconds: see :attr:`~.candidate.Candidate.tier_seconds`.

    Attributes:
        models_differ: whether the model of a request restricts the choice of its backend.
        paths: which kinds of engines lack which path.
        contexts_differ: whether a prompt may fit some backends only.
        reads_prompts: whether prompts must be read, because contexts differ or because a policy needs them.
        reads_every_prompt: whether they must be read under every policy.
        lists, set_default_model: see :class:`~.candidate_registry.CandidateRegistry`.
    """

    def __init__(
        self,
        fleet: Fleet,
        router: PromptRouter,
        conversations: Conversations | None = None,
        *,
        is_shared: bool = False,
        records_decisions: bool = False,
        retry_after_seconds: int = 1,
        default_model: str | None = None,
        tier_penalty_seconds: float = 0.0,
    ) -> None:
        self.router = router
        self.conversations = conversations or Conversations(ConversationMemory())
        self.models_differ = self.contexts_differ = self.reads_prompts = self.reads_every_prompt = False
        self._is_shared, self._records_decisions = is_shared, records_decisions
        self._trend = ForeignTrend()
        self._retry_after_seconds = retry_after_seconds
        self.paths = PathTable()
        self._live = 0
        self._clock = fleet.clock
        self._registry = CandidateRegistry(fleet.clock, default_model, tier_penalty_seconds)
        self._sets = self._registry.sets
        self.lists, self.set_default_model = self._registry.lists, self._registry.set_default_model
        self.on_replaced(fleet.backends)
        fleet.subscribe(self)

    def __repr__(self) -> str:
        usual, own = self.router.policies.usual, len(self.router.policies.by_model)
        return f"<Placement among {len(self.candidates)} backends by {usual.name}, {own} models by their own policy>"

    # --- changes

    def on_replaced(self, backends: Sequence[Backend]) -> None:
        """See :class:`FleetObserver`."""
        self._registry.replace(backends)
        self.paths.forget()
        self._look_again()

    def on_reported(self, backend: Backend) -> None:
        """See :class:`FleetObserver`."""
        now = self._clock()
        for candidate in self._registry.all_of(backend):
            candidate.adopt_report(self._trend, now)
            candidate.work.take_over_memory(backend.health.reported.context_use or 0.0, candidate.load.total)
        if self.router.needs_update(len(self.candidates)):
            self.router.update(self._registry.everyone)

    def on_lost(self, backend: Backend) -> None:
        """See :class:`FleetObserver`."""
        for candidate in self._registry.all_of(backend):
            self.router.forget(candidate)

    def on_serving_changed(self) -> None:
        """See :class:`FleetObserver`."""
        self._registry.forget_sets()
        self._registry.learn_names()
        before, self._live = self._live, sum(one.backend.is_live for one in self.candidates)
        if self._live > before:  # an engine that comes back may have other options than before
            self.paths.forget()
        self._look_again()

    def on_reviewed(self, backend: Backend) -> None:
        """See :class:`FleetObserver`."""
        for candidate in self._registry.all_of(backend):
            candidate.review(self._clock())

    def set_policies(self, policies: ModelPolicies) -> None:
        """Use ``policies`` from now on."""
        self.router.set_policies(policies)
        self._look_again()

    def _look_again(self) -> None:
        self._registry.compare_backends()
        self.models_differ = self._registry.models_differ
        self.contexts_differ = self._registry.contexts_differ
        self.reads_every_prompt = self.contexts_differ
        self.reads_prompts = self.contexts_differ or self.router.policies.read_prompts

    # --- for requests

    @property
    def candidates(self) -> Sequence[Candidate]:
        """A candidate for each backend, in the order of the fleet."""
        return self._registry.candidates

    @property
    def model_of_unnamed(self) -> str | None:
        """The model of requests that name none; ``None`` if all backends serve the same models."""
        return self._registry.model_of_unnamed()

    def learned(self) -> LearnedSnapshot | None:
        """What was learned about the backends; ``None`` while no policy learns."""
        if not self.router.policies.learn:
            return None
        return LearnedSnapshot.of((self._registry.all_of(one.backend) for one in self.candidates), self.router.index)

    def policy(self, model: str | None) -> Policy:
        """The policy for requests that name ``model``."""
        return self.router.policies.policy(model)

    def token_sizes(self, policy: Policy) -> TokenSizes:
        """How the prompt of a request under ``policy`` is measured."""
        del policy
        return self.router.token_sizes

    def needed_prompt(self, requirements: Requirements) -> Prompt | None:
        """The prompt of a request; ``None`` if none of its backends or policies needed it."""
        return requirements.prompt

    def choose(self, requirements: Requirements, excluded: Collection[Backend] = ()) -> Choice | None:
        """The backend for a request; ``None`` when all are full.

        Raises:
            CapacityError: no backend that serves the request is available.
            ClientError: 404, the models of all backends are known, and none serves this one.
        """
        found = self._sets.get(requirements.model) or self._found(requirements)
        if self._is_shared:
            found.recount()
        if (
            requirements.affinity is None
            and (requirements.prompt is None or found.contexts is None)
            and not excluded
            and requirements.needs_slot
            and not requirements.lacking
        ):
            choice = None
        else:
            found = self._narrowed(found, requirements, excluded)
            choice = self._at_home(found, requirements.affinity)
        if choice is None and requirements.turn is not None:
            choice = self.conversations.choose(found, requirements.turn, self._trend, self._clock)
        if choice is None:
            choice = requirements.policy.choose(found, requirements.prompt, self.router)
        if choice is None:
            choice = self._last_resort(found.candidates, requirements)
        if self._records_decisions and choice is not None:
            rows = Ranked(found.ranks, found.costs) if choice.rows is None else choice.rows
            tokens = None if requirements.prompt is None else requirements.prompt.tokens
            choice.decision = Decision(
                choice.rule, choice.considered, rows, choice.candidate, requirements.model, tokens
            )
        return choice

    def track(self, requirements: Requirements, choice: Choice) -> Tracker | None:
        """A tracker that learns from a request about to be sent; ``None`` if there is nothing to learn from it."""
        prompt = requirements.prompt
        if prompt is None:
            return None
        tracker = self.router.track(requirements.policy, prompt, choice.candidate, choice.view)
        return SizeTracker(self.router.token_sizes, prompt) if tracker is None and self.contexts_differ else tracker

    def has_other(self, requirements: Requirements, excluded: Collection[Backend]) -> bool:
        """Whether a backend that is not ``excluded`` takes such requests; it may be full."""
        found = self._found(requirements)
        return any(is_open(one.backend, requirements) for one in self._eligible(found, requirements, excluded))

    def without_lacking(self, requirements: Requirements, method: str, path: str) -> Requirements:
        """``requirements`` of a request without a model; if its usual backends lack the path, of other kinds."""
        lacking = self.paths.lacking(method, path)
        if not lacking or any(kind_of(one.backend) not in lacking for one in self._registry.serving(None)):
            return requirements
        return msgspec.structs.replace(requirements, lacking=lacking)

    def lane(self, requirements: Requirements) -> Hashable:
        """The lane of the queue in which a request waits: the same backends can serve all requests of one lane."""
        affinity = requirements.affinity
        if affinity is not None and affinity.is_required:
            return requirements.model, affinity.home
        found = self._found(requirements)
        fit = self._fitting(found, requirements)
        model = requirements.model
        is_usual = fit is found.candidates and not is_for_all(requirements)
        return model if is_usual else (model, *(one.backend.url for one in fit))

    def waiting(self, requirements: Requirements, excluded: Collection[Backend]) -> AbstractContextManager[None]:
        """While the request waits: models that take turns count it."""
        if not self._registry.has_models:
            return nullcontext()
        found = self._found(requirements)
        return Wait(self._eligible(found, requirements, excluded), self._clock)

    # --- candidates

    def _found(self, requirements: Requirements) -> CandidateSet:
        """The live backends that may serve the request, whether or not the prompt fits."""
        if is_for_all(requirements):
            return self._registry.find_all()
        return self._registry.find_set(requirements.model)

    def _fitting(self, found: CandidateSet, requirements: Requirements) -> Sequence[Candidate]:
        """The candidates that have the path and that the prompt fits; ``found.candidates`` itself if all do."""
        candidates, contexts = found.candidates, found.contexts
        if requirements.lacking:
            kinds = [kind_of(one.backend) for one in candidates]
            # All requests without a model go to the same one of the other kinds.
            wanted = [kind for kind in kinds if kind not in requirements.lacking][:1]
            candidates = [one for one, kind in zip(candidates, kinds, strict=True) if kind in wanted]
            contexts = contexts_of([one.backend for one in candidates], requirements.model)
        if contexts is None or requirements.prompt is None:
            return candidates
        need = Need.of(requirements.prompt, self.router.token_sizes)
        return candidates if need is None else fitting(candidates, contexts, need)

    def _eligible(
        self, found: CandidateSet, requirements: Requirements, excluded: Collection[Backend]
    ) -> Sequence[Candidate]:
        """The candidates that may get the request, full or not; ``found.candidates`` itself if all may."""
        affinity = requirements.affinity
        if affinity is not None and affinity.is_required and affinity.home is not None:
            # A home that has left the fleet still serves the requests that need it.
            whole = self._registry.get(affinity.home) or self._registry.new_candidate(affinity.home)
            home = self._registry.of_model(whole, requirements.model)
            return [home] if home.backend.is_live and home.backend not in excluded else []
        if affinity is not None and affinity.is_unlocated and self._awaits_backend(requirements):
            return []  # a 404 from the others could be wrong
        fit = self._fitting(found, requirements)
        if requirements.loads_nothing:
            fit = [one.whole for one in fit]  # it does not use the model
        return [one for one in fit if one.backend not in excluded] if excluded else fit

    def _narrowed(self, found: CandidateSet, requirements: Requirements, excluded: Collection[Backend]) -> CandidateSet:
        """The candidates that may get the request; ``found`` itself if all may, by their usual ranks."""
        eligible = self._eligible(found, requirements, excluded)
        is_required = requirements.affinity is not None and requirements.affinity.is_required
        if eligible is found.candidates and requirements.needs_slot and not is_required:
            return found
        return self._ranked(found, eligible, requirements)

    def _ranked(self, found: CandidateSet, eligible: Sequence[Candidate], requirements: Requirements) -> CandidateSet:
        """The ``eligible`` ones of the candidates ``found``, with their ranks at this moment."""
        handicaps = None if found.handicaps is None else [found.handicap_of(one) for one in eligible]
        ranks = [rank_of(one, requirements) + found.handicap_of(one) for one in eligible]
        return CandidateSet(eligible, ranks, handicaps=handicaps)

    # --- choices

    def _at_home(self, found: CandidateSet, affinity: Affinity | None) -> Choice | None:
        """The home backend of the request, if it takes the request now."""
        if affinity is None or affinity.home is None:
            return None
        free = found.free()
        home = next((one for one in free if one.backend is affinity.home), None)
        if home is None or not (affinity.is_required or home.config.tier == min(one.config.tier for one in free)):
            return None  # work returns to a lower tier, even to a cold cache
        return Choice(home, TIED, [home], [()])

    def _last_resort(self, candidates: Sequence[Candidate], requirements: Requirements) -> Choice | None:
        """The best suspect with a free slot, if there is no other backend to wait for; ``None``: the request waits."""
        is_required = requirements.affinity is not None and requirements.affinity.is_required
        others = [one for one in candidates if not one.backend.is_draining or is_required]
        if any(one.backend.takes_requests or one.backend.health.state is not Health.SUSPECT for one in others):
            return None
        if not others:
            if self._awaits_backend(requirements):
                return None
            raise self._unavailable(requirements)
        free = [one for one in others if one.has_slot]
        suspects = CandidateSet(free, [one.rank() for one in free])
        choice = LEAST_REQUESTS.choose(suspects, None, self.router)
        if choice is not None:
            choice.rows = Ranked(suspects.ranks, suspects.costs)
        return choice

    def _awaits_backend(self, requirements: Requirements) -> bool:
        """Whether a backend that has neither answered nor failed yet may serve the request."""
        affinity = requirements.affinity
        if affinity is not None and affinity.is_required and affinity.home is not None:
            return False
        serving = self.candidates if is_for_all(requirements) else self._registry.serving(requirements.model)
        return any(one.backend.is_awaited for one in serving)

    def _unavailable(self, requirements: Requirements) -> ProxyError:
        affinity, model = requirements.affinity, requirements.model
        if affinity is not None and affinity.is_required and affinity.home is not None:
            # Not 404: the backend may come back and still have the resource, or report itself that it lacks it.
            message = "The backend that has what this names is not available."
            return CapacityError(message, code="home_unavailable", retry_after_seconds=self._retry_after_seconds)
        live = [one for one in self.candidates if one.backend.is_live]
        if live and model is not None and not self._registry.serving(model):
            return ClientError(f"The model '{model[:200]}' is not served here.", status=404, code="model_not_found")
        needed = "this" if model is None else f"the model '{model[:200]}'"
        message = f"No backend that serves {needed} is available." if live else "No backend is available."
        return CapacityError(message, retry_after_seconds=self._retry_after_seconds)
