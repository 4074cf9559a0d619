"""What a request asks of the fleet."""

from __future__ import annotations

import msgspec

from inference_engine_proxy_server.requests.prompt import Prompt
from inference_engine_proxy_server.routing.affinity import Affinity
from inference_engine_proxy_server.routing.policies import Way

__all__ = ["Requirements"]


class Requirements(msgspec.Struct, frozen=True, gc=False):
    """A place that a request asks for. Made once for each, before it is first placed.

    Attributes:
        model: the name that the request gives; ``None``: it names none, so all backends serve it.
        needs_slot: it takes one of the places that a backend has; one that does not never waits for a full one.
        prompt: what is to be read; ``None``: nobody looks at it.
        way: the policy that looks at it; ``None``: whoever has the fewest requests is chosen.
        affinity: to one backend; ``None`` when the request names and creates no backend-local resource.
    """

    model: str | None = None
    needs_slot: bool = True
    prompt: Prompt | None = None
    way: Way | None = None
    affinity: Affinity | None = None
