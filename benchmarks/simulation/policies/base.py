"""Interface of a policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from simulation.batching import EngineState, Usage
from simulation.requests import Request
from simulation.virtual_loop import VirtualLoop

__all__ = ["Policy", "ReplicaView", "Site"]


@dataclass(slots=True)
class ReplicaView:
    """One replica's knowledge of the fleet, independent of its policy; each list has one item per backend.

    Attributes:
        in_flight: number of requests sent by this replica that have no complete answer yet.
        polled: last reported state; ``None`` before the first poll.
        is_up: the backend answered the last poll, and has refused no request since.
    """

    in_flight: list[int]
    polled: list[EngineState | None]
    is_up: list[bool]

    @classmethod
    def of(cls, backends: int) -> ReplicaView:
        """The view before the first poll."""
        return cls([0] * backends, [None] * backends, [True] * backends)

    def available(self) -> list[int]:
        """The backends that are up; all backends if none seems to be up."""
        return [backend for backend, is_up in enumerate(self.is_up) if is_up] or list(range(len(self.is_up)))


@dataclass(slots=True)
class Site:
    """The environment of a policy.

    Attributes:
        view: its replica's knowledge.
        loop: the virtual clock.
        random: its random generator.
        engine: kind of all backends: "vllm" or "llama.cpp".
        send: sends a queued request to a backend.
        poll_seconds: mean time between two polls of a backend.
        most_waiting: longest queue in this replica so far, for the report.
    """

    view: ReplicaView
    loop: VirtualLoop
    random: Random
    engine: str
    send: Callable[[Request, int], None]
    poll_seconds: float = 1.0
    most_waiting: int = field(default=0)


class Policy(ABC):
    """Chooses backends for one replica. It knows only what these methods pass to it; most policies need little."""

    # ruff: noqa: B027

    def __init__(self, site: Site) -> None:
        self.site = site
        self.random = site.random

    @abstractmethod
    def choose(self, request: Request, view: ReplicaView, now: float) -> int | None:
        """The backend for ``request``; ``None`` to queue it, in which case the policy sends it later."""

    def sent(self, request: Request, backend: int, now: float) -> None:
        """Called when ``request`` has been sent to ``backend``."""

    def refused(self, request: Request, backend: int, now: float) -> None:
        """Called when ``backend`` is unreachable; :meth:`choose` is called again."""

    def lost(self, request: Request, backend: int, now: float) -> None:
        """Called when the connection to ``backend`` broke before the answer was complete."""

    def first_token(self, request: Request, backend: int, now: float) -> None:
        """Called when a streamed answer begins."""

    def done(self, request: Request, backend: int, usage: Usage, now: float) -> None:
        """Called when an answer is complete."""

    def polled(self, backend: int, state: EngineState | None, own: int, asked_at: float, now: float) -> None:
        """Called when ``backend`` has reported its ``state``, or with ``None`` if it is unreachable.

        ``own``: number of this replica's requests on the backend at the poll or now, whichever is greater.
        """
