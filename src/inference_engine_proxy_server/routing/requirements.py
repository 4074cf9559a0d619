"""What a request requires of a backend."""

from __future__ import annotations

from collections.abc import Hashable

import msgspec

from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.requests.prompt import Prompt
from inference_engine_proxy_server.requests.turns import Turn
from inference_engine_proxy_server.routing.affinity import Affinity
from inference_engine_proxy_server.routing.choice import Policy
from inference_engine_proxy_server.routing.paths import kind_of
from inference_engine_proxy_server.routing.policies import LEAST_REQUESTS

__all__ = ["Requirements", "beyond"]


class Requirements(msgspec.Struct, frozen=True, gc=False):
    """The requirements of one request, created once, before its first attempt.

    Attributes:
        model: the model that the request names; ``None`` if it names none, so that every backend serves it.
        needs_slot: it occupies a slot of its backend. A request that needs none never waits for a full backend.
        loads_nothing: an engine answers it without loading the model that it names.
        prompt: its prompt; ``None`` if it was not read.
        policy: chooses the backend.
        affinity: ties the request to one backend; ``None`` if nothing does.
        lacking: kinds of engines (:mod:`~.paths`) that lack the path of the request.
        turn_key: the key of the turn of a conversation that it makes (:mod:`~.turns`); ``None`` if it has no messages,
            or if the policy reads prompts.
        turn: this turn; ``None`` also if it certainly is the first one.
    """

    model: str | None = None
    needs_slot: bool = True
    prompt: Prompt | None = None
    policy: Policy = LEAST_REQUESTS
    affinity: Affinity | None = None
    lacking: frozenset[Hashable] = frozenset()
    loads_nothing: bool = False
    turn_key: int | None = None
    turn: Turn | None = None


def beyond(requirements: Requirements, backend: Backend) -> Requirements:
    """``requirements`` of a request whose path engines of the kind of ``backend`` lack."""
    return msgspec.structs.replace(requirements, lacking=requirements.lacking | {kind_of(backend)})
