"""What a policy is told, and asked."""

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
    """What one replica knows of the fleet, whatever its policy; each list has a place for each backend.

    Attributes:
        in_flight: requests that it has sent there and that have no whole answer yet.
        polled: what each told last; ``None``: it has not told anything yet.
        is_up: each answered its last question, and has refused nothing since.
    """

    in_flight: list[int]
    polled: list[EngineState | None]
    is_up: list[bool]

    @classmethod
    def of(cls, backends: int) -> ReplicaView:
        """Before anything is known."""
        return cls([0] * backends, [None] * backends, [True] * backends)

    def available(self) -> list[int]:
        """The backends that are up; all, if none seems to be."""
        return [backend for backend, is_up in enumerate(self.is_up) if is_up] or list(range(len(self.is_up)))


@dataclass(slots=True)
class Site:
    """Where a policy works.

    Attributes:
        view: what its replica knows.
        loop: the clock.
        random: its source of chance.
        engine: of all backends: "vllm" or "llama.cpp".
        send: takes a request that had to wait to a backend.
        most_waiting: the most that have waited in this replica, for the report.
    """

    view: ReplicaView
    loop: VirtualLoop
    random: Random
    engine: str
    send: Callable[[Request, int], None]
    most_waiting: int = field(default=0)


class Policy(ABC):
    """Chooses for one replica. It has no other knowledge than what it is told here; most need little of that."""

    # ruff: noqa: B027

    def __init__(self, site: Site) -> None:
        self.site = site
        self.random = site.random

    @abstractmethod
    def choose(self, request: Request, view: ReplicaView, now: float) -> int | None:
        """The backend for ``request``; ``None``: it waits, and the policy sends it when its turn has come."""

    def sent(self, request: Request, backend: int, now: float) -> None:
        """``request`` is on its way to ``backend``."""

    def refused(self, request: Request, backend: int, now: float) -> None:
        """``backend`` cannot be reached; another choice will be asked for."""

    def first_token(self, request: Request, backend: int, now: float) -> None:
        """A streamed answer begins."""

    def done(self, request: Request, backend: int, usage: Usage, now: float) -> None:
        """An answer is complete."""

    def polled(self, backend: int, state: EngineState | None, own: int, asked_at: float, now: float) -> None:
        """``backend`` told its ``state``, or (``None``) could not be reached.

        ``own``: this replica's requests there when it was asked, or now, whichever is more.
        """
