"""Who of the fleet gets a request: of those that serve it and could take it, the one that the policy names.

Nothing here counts requests, nor weighs evidence: :mod:`~.backend_pool` does both, and tells of what has changed.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Sequence

from inference_engine_proxy_server.backends.base import ModelNames
from inference_engine_proxy_server.errors import CapacityError, ClientError, ProxyError
from inference_engine_proxy_server.fleet.backend import Backend, Learning
from inference_engine_proxy_server.fleet.health_tracker import Health
from inference_engine_proxy_server.requests.token_sizes import TokenSizes
from inference_engine_proxy_server.routing.balancer import choose
from inference_engine_proxy_server.routing.candidate_set import CandidateSet
from inference_engine_proxy_server.routing.context_fit import Need, SizeLearning, contexts_of, differ_somewhere, fitting
from inference_engine_proxy_server.routing.decisions import FEWEST, TIED, Decision, Ranked, Row, Rule
from inference_engine_proxy_server.routing.policies import Way
from inference_engine_proxy_server.routing.prompt_router import PromptRouter
from inference_engine_proxy_server.routing.requirements import Requirements

__all__ = ["Placement"]

_REMEMBERED_MODELS = 1024  # names that clients have asked for
# Requests beyond its limit that a backend may have which holds what they begin with, though others are free. With
# BACKEND_QUEUE_ALLOWANCE that is as many as MAX_ALLOWED_DEFERRED lets wait inside it.
_MAY_WAIT = 2


class Placement:
    """Chooses among the fleet.

    Args:
        backends: the fleet, each once.
        chooser: chooses by policies that look at prompts; ``None``: there is none such, and whoever has the fewest
            requests is chosen.
        is_shared: other workers send requests to these backends, too, and tell nobody.
        explains: somebody wants to know why.
        retry_after_seconds: when those should ask again whom nobody serves.

    Attributes:
        chooser: that one.
        token_sizes: what is known of tokens' length.
        contexts_differ: what is to be read may not fit everywhere.
        reads_prompts: so that matters, or it does to a policy.
        decision: how the latest one was chosen; only where that is explained.
    """

    decision: Decision

    def __init__(
        self,
        backends: Sequence[Backend],
        chooser: PromptRouter | None,
        *,
        is_shared: bool,
        retry_after_seconds: int,
        explains: bool = False,
    ) -> None:
        self.chooser = chooser
        self.token_sizes = TokenSizes() if chooser is None else chooser.token_sizes
        self.contexts_differ = self.reads_prompts = False
        self._backends = backends
        self._is_shared = is_shared
        self._explains = explains
        self._retry_after_seconds = retry_after_seconds
        self._servers: dict[str | None, CandidateSet] = {}  # by model
        self.take_in(backends)

    def take_in(self, backends: Sequence[Backend]) -> None:
        """These are the fleet now."""
        self._forget_servers()
        self._backends = backends
        self.choose_by(self.chooser)

    def choose_by(self, chooser: PromptRouter | None) -> None:
        """Policies have changed; ``chooser`` as at the beginning."""
        self.chooser = chooser
        if chooser is not None:
            self.token_sizes = chooser.token_sizes
            chooser.take_in(self._backends)
        self._compare_contexts()

    @property
    def has_policies_by_model(self) -> bool:
        """Whether a request's policy depends on its model."""
        return self.chooser is not None and bool(self.chooser.policies.by_model)

    def way(self, model: str | None) -> Way | None:
        """The policy for requests that ask for ``model``; ``None``: whoever has the fewest requests gets them."""
        return None if self.chooser is None else self.chooser.policies.way(model)

    def look_anew(self) -> None:
        """A backend serves other models than before, or has begun to work, or ceased to."""
        self._forget_servers()
        self._compare_contexts()

    def best(self, wanted: Requirements, excluded: Collection[Backend] = ()) -> Backend | None:
        """The one that a request should go to; ``None``: all are full.

        Raises:
            CapacityError: nobody who serves it works now.
            ClientError: 404, all live backends are strict about names and none has this one.
        """
        is_usual = wanted.prompt is None and wanted.needs_slot and not excluded
        if is_usual and (
            wanted.affinity is None or wanted.affinity.allows_any_backend
        ):  # whoever serves the model is a candidate
            servers = self._servers.get(wanted.model) or self._find_servers(wanted.model)
            if self._is_shared:
                servers.rerank()
            best = servers.best()
            if self._explains and best is not None:
                self._note(FEWEST, servers.backends, Ranked(servers.ranks, servers.costs), best, wanted)
        else:
            best = self._best_of(self._candidates(wanted, excluded), wanted)
        return best or self._last_resort(self._candidates(wanted, excluded), wanted)

    def commission(self, wanted: Requirements, backend: Backend) -> Learning | None:
        """What will be learned from a request that is about to be sent to ``backend``; ``None``: nothing."""
        if wanted.prompt is None:
            return None
        learning = None
        if self.chooser is not None and wanted.way is not None:
            learning = self.chooser.send(wanted.way, wanted.prompt, backend)
        return SizeLearning(self.token_sizes, wanted.prompt) if learning is None and self.contexts_differ else learning

    def has_other(self, wanted: Requirements, excluded: Collection[Backend]) -> bool:
        """Whether a backend that is not ``excluded`` takes such requests, were it free."""
        return any(_is_open(backend, wanted) for backend in self._candidates(wanted, excluded))

    def lane(self, wanted: Requirements) -> Hashable:
        """Where in the line it waits: those who have the same can be served by the same backends."""
        if wanted.affinity is not None and wanted.affinity.is_required:
            return wanted.model, wanted.affinity.home
        if wanted.prompt is None:
            return wanted.model
        servers, fitting = self._fitting(wanted)
        return wanted.model if fitting is servers.backends else (wanted.model, *(backend.url for backend in fitting))

    def _forget_servers(self) -> None:
        self._servers.clear()
        for backend in self._backends:
            backend.seats.clear()

    def _compare_contexts(self) -> None:
        self.contexts_differ = differ_somewhere(one for one in self._backends if one.is_live)
        self.reads_prompts = self.contexts_differ or self.chooser is not None

    def _candidates(self, wanted: Requirements, excluded: Collection[Backend]) -> list[Backend]:
        """Those that the request may go to, free or not."""
        affinity = wanted.affinity
        if affinity is not None and affinity.is_required and affinity.home is not None:
            return [affinity.home] if affinity.home.is_live and affinity.home not in excluded else []
        return [backend for backend in self._fitting(wanted)[1] if backend not in excluded]

    def _fitting(self, wanted: Requirements) -> tuple[CandidateSet, Sequence[Backend]]:
        """Those who serve the model, and where the prompt fits: the very same tuple, if it fits everywhere."""
        servers = self._servers.get(wanted.model) or self._find_servers(wanted.model)
        if servers.contexts is None or wanted.prompt is None:
            return servers, servers.backends
        need = Need.of(wanted.prompt, self.token_sizes)
        return servers, servers.backends if need is None else fitting(servers.backends, servers.contexts, need)

    def _find_servers(self, model: str | None) -> CandidateSet:
        """The live backends that serve ``model``.

        A name that a live backend lists goes to backends that list it; any other name to those that answer to any
        name, or are not known to be strict.
        """
        found = [backend for backend in self._backends if backend.is_live]
        if model is not None:
            found = [backend for backend in found if model in backend.model_ids] or [
                backend for backend in found if backend.model_names is not ModelNames.STRICT
            ]
        if len(self._servers) >= _REMEMBERED_MODELS:
            self._forget_servers()
        kind = tuple(found), contexts_of(found, model)
        same = (servers for servers in self._servers.values() if (servers.backends, servers.contexts) == kind)
        self._servers[model] = servers = next(same, None) or CandidateSet(*kind)
        return servers

    def _best_of(self, candidates: Sequence[Backend], wanted: Requirements) -> Backend | None:
        candidates = [backend for backend in candidates if _is_open(backend, wanted)]
        free = [backend for backend in candidates if not wanted.needs_slot or backend.load < backend.limit]
        if not free:
            return None
        if wanted.affinity is not None and wanted.affinity.home in free:
            self._note(TIED, [wanted.affinity.home], [()], wanted.affinity.home, wanted)
            return wanted.affinity.home
        if self.chooser is not None and wanted.way is not None and wanted.prompt is not None:
            full = [backend for backend in candidates if backend.limit <= backend.load < backend.limit + _MAY_WAIT]
            asked, choice = self.chooser.best(wanted.way, free, full, wanted.prompt)
            self._note(wanted.way, asked, choice.rows, asked[choice.at], wanted)
            return asked[choice.at]
        return self._least_loaded(free, wanted)

    def _last_resort(self, candidates: Iterable[Backend], wanted: Requirements) -> Backend | None:
        """The best suspect with a free place, when there is nobody else to wait for; ``None``: waiting makes sense."""
        is_needed = wanted.affinity is not None and wanted.affinity.is_required
        others = [backend for backend in candidates if not backend.is_draining or is_needed]
        if any(backend.takes_requests or backend.health.state is not Health.SUSPECT for backend in others):
            return None
        if not others:
            raise self._why_nobody(wanted)
        free = [backend for backend in others if backend.load < backend.limit]
        return self._least_loaded(free, wanted) if free else None

    def _least_loaded(self, backends: Sequence[Backend], wanted: Requirements) -> Backend:
        ranks = [backend.weighed() for backend in backends]
        costs = [backend.cost for backend in backends]
        best = backends[choose(ranks, None if len(set(costs)) == 1 else costs)]
        self._note(FEWEST, backends, Ranked(ranks, costs), best, wanted)
        return best

    def _note(
        self, rule: Rule, candidates: Sequence[Backend], rows: Iterable[Row], chosen: Backend, wanted: Requirements
    ) -> None:
        if self._explains:
            tokens = None if wanted.prompt is None else wanted.prompt.tokens
            self.decision = Decision(rule, candidates, rows, chosen, wanted.model, tokens)

    def _why_nobody(self, wanted: Requirements) -> ProxyError:
        if wanted.affinity is not None and wanted.affinity.is_required and wanted.affinity.home is not None:
            # Not 404: it may come back, and has then what was asked for, or says itself that it has not.
            message = "The backend that has what this names is not available."
            return CapacityError(message, code="home_unavailable", retry_after_seconds=self._retry_after_seconds)
        model = wanted.model
        live = [backend for backend in self._backends if backend.is_live]
        if (
            live
            and model is not None
            and all(backend.model_names is ModelNames.STRICT for backend in live)
            and not any(model in backend.model_ids for backend in self._backends)
        ):
            return ClientError(f"The model '{model[:200]}' is not served here.", status=404, code="model_not_found")
        message = "No backend that serves this is available." if live else "No backend is available."
        return CapacityError(message, retry_after_seconds=self._retry_after_seconds)


def _is_open(backend: Backend, wanted: Requirements) -> bool:
    """Whether a live backend would take it, were it free: also one that is draining, if only that one can."""
    if wanted.affinity is None or not wanted.affinity.is_required:
        return backend.takes_requests
    return not wanted.needs_slot or backend.takes_requests or (backend.is_draining and backend.health.takes_requests)
