"""Reads what a request requires of a backend, and no more of its body than that takes."""

from __future__ import annotations

from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.errors import ClientError
from inference_engine_proxy_server.requests.content import NO_MESSAGES, RequestContent, model_problem, read_content
from inference_engine_proxy_server.requests.destinations import Destination
from inference_engine_proxy_server.requests.prompt import read_prompt
from inference_engine_proxy_server.requests.turns import NO_TURN, Turn, turn_of
from inference_engine_proxy_server.routing.affinity import Affinity, AffinityTable
from inference_engine_proxy_server.routing.placement import Placement
from inference_engine_proxy_server.routing.requirements import Requirements

__all__ = ["RequirementsReader"]

_STORES_COMPLETION = Affinity(None, None, None, creates_response=False, deletes=False, creates_completion=True)
_LOADS_NOTHING = b"autoload=false"  # in the query: a llama.cpp router then answers only for models in memory
_WITHOUT_CONTENT = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})  # engines ignore the bodies of these


class RequirementsReader:
    """Reads requests.

    Args:
        placement: chooses the backends.
        affinities: which backend holds what.
    """

    def __init__(self, placement: Placement, affinities: AffinityTable) -> None:
        self._placement = placement
        self._affinities = affinities
        self._turns = placement.conversations.kind

    def read(self, request: ProxiedRequest) -> Requirements:
        """What ``request`` requires of a backend. Sets its model.

        The prompt is read only if a policy reads prompts, or if contexts of different lengths make its length matter.

        Raises:
            ClientError: the path is blocked or misjoined, or only an engine might be able to read the model.
        """
        head = request.head
        takes_slot = head.destination is Destination.WORK
        affinity = None
        if not takes_slot:
            if head.destination is not Destination.LIGHT:
                affinity = self._affinity(request)
                takes_slot = head.destination is Destination.TIED
            elif _LOADS_NOTHING in head.target and request.content.model is not None:
                request.model = request.content.model
                return Requirements(request.model, needs_slot=False, loads_nothing=True)
        elif head.access is not None and _may_store(request):
            affinity = _STORES_COMPLETION
        if takes_slot and self._placement.reads_prompts:
            requirements = self._with_prompt(request, affinity)
        else:
            content = request.content
            if request.model is None:
                request.model = content.model
            key, turn = _turn(request, content, affinity, self._turns) if takes_slot else NO_TURN
            requirements = Requirements(request.model, takes_slot, affinity=affinity, turn_key=key, turn=turn)
        if requirements.model is None:
            self._require_readable_model(request)
            if affinity is None or not affinity.is_required:
                requirements = self._placement.without_lacking(requirements, head.method, head.path)
        return requirements

    def _with_prompt(self, request: ProxiedRequest, affinity: Affinity | None) -> Requirements:
        head, placement = request.head, self._placement
        if request.model is None and placement.router.policies.by_model:
            request.model = request.content.model
        policy = placement.policy(request.model)
        key, turn = NO_TURN
        if not policy.reads_prompts:
            # Read again: the usual content has the messages one by one, for policies that read prompts.
            content = read_content(head.target, request.body, head.passed_on)
            key, turn = _turn(request, content, affinity, self._turns)
            if not placement.reads_every_prompt:
                return Requirements(request.model, policy=policy, affinity=affinity, turn_key=key, turn=turn)
        sizes, content = placement.token_sizes(policy), request.read_with_prompt()
        prompt = read_prompt(head.target, head.path, head.passed_on, request.body, sizes, content)
        request.model = request.model or prompt.model
        return Requirements(request.model, prompt=prompt, policy=policy, affinity=affinity, turn_key=key, turn=turn)

    def _affinity(self, request: ProxiedRequest) -> Affinity:
        if request.head.destination is Destination.BLOCKED:
            message = "This path controls the engine itself; it is blocked here by BLOCKED_PATHS."
            raise ClientError(message, status=403, code="path_blocked")
        if request.head.destination is Destination.MISJOINED:
            message = "The path has a doubled slash: remove the slash at the end of the base URL in the client."
            raise ClientError(message, status=404, code="doubled_slash")
        return self._affinities.affinity(request.head, request.content)

    def _require_readable_model(self, request: ProxiedRequest) -> None:
        """Reject a body whose model only an engine might be able to read, if backends serve different models."""
        head = request.head
        if request.body and self._placement.models_differ and head.destination is not Destination.NAMED:
            problem = model_problem(head.passed_on, request.body)
            if problem is not None and head.method not in _WITHOUT_CONTENT:
                try:
                    raise problem
                finally:
                    del problem  # its traceback refers to this frame: a reference cycle


def _turn(
    request: ProxiedRequest, content: RequestContent, affinity: Affinity | None, kind: type[Turn]
) -> tuple[int | None, Turn | None]:
    """The turn that ``request`` makes, and its key, as :func:`turn_of`."""
    is_response = affinity is not None and affinity.creates_response
    messages = content.raw_input if is_response else content.raw_messages
    if messages is NO_MESSAGES:
        return NO_TURN
    model = request.model or content.model
    return turn_of(model, messages, request.head.passed_on, has_roles=not is_response, kind=kind)


def _may_store(request: ProxiedRequest) -> bool:
    """Whether ``request`` may ask the engine to store a chat completion. A guess: a wrong answer is harmless."""
    return request.head.path.endswith("/chat/completions") and b'"store"' in request.body
