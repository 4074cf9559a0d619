"""Common policies, which use prompts at most for hashing."""

from __future__ import annotations

import hashlib

from simulation.policies.base import Policy, ReplicaView, Site
from simulation.requests import Request

__all__ = ["LeastConnections", "LeastPolled", "PowerOfTwo", "RandomChoice", "Rendezvous", "RoundRobin"]

_HASHED_TOKENS = 128  # 512 bytes, what olla's sticky sessions hash


class RandomChoice(Policy):
    """A random backend."""

    def choose(self, request: Request, view: ReplicaView, now: float) -> int:  # noqa: ARG002
        return self.random.choice(view.available())


class RoundRobin(Policy):
    """Each backend in turn; each replica starts at a random backend."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._next = self.random.randrange(len(site.view.is_up))

    def choose(self, request: Request, view: ReplicaView, now: float) -> int:  # noqa: ARG002
        backends = len(view.is_up)
        for _ in range(backends):
            self._next = (self._next + 1) % backends
            if view.is_up[self._next]:
                break
        return self._next


class LeastPolled(Policy):
    """The backend that last reported the fewest running and waiting requests; ties at random. Static between polls."""

    def choose(self, request: Request, view: ReplicaView, now: float) -> int:  # noqa: ARG002
        loads = {backend: _polled_load(view, backend) for backend in view.available()}
        least = min(loads.values())
        return self.random.choice([backend for backend, load in loads.items() if load == least])


class LeastConnections(Policy):
    """The backend with the fewest of this replica's requests; ties in turn, as nginx's ``least_conn`` without zone."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._used = [0] * len(site.view.is_up)

    def choose(self, request: Request, view: ReplicaView, now: float) -> int:  # noqa: ARG002
        chosen = min(view.available(), key=lambda backend: (view.in_flight[backend], self._used[backend]))
        self._used[chosen] += 1
        return chosen


class PowerOfTwo(Policy):
    """Of two random backends, the one with fewer of this replica's requests in flight."""

    def choose(self, request: Request, view: ReplicaView, now: float) -> int:  # noqa: ARG002
        available = view.available()
        pair = self.random.sample(available, min(2, len(available)))
        return min(pair, key=lambda backend: view.in_flight[backend])


class Rendezvous(Policy):
    """The same backend for a session, or for a prompt's first 512 bytes, whatever the load (Thaler, Ravishankar)."""

    def choose(self, request: Request, view: ReplicaView, now: float) -> int:  # noqa: ARG002
        key = request.session or _beginning(request)
        return max(view.available(), key=lambda backend: _weight(key, backend))


def _polled_load(view: ReplicaView, backend: int) -> int:
    state = view.polled[backend]
    return 0 if state is None else state.processing + state.waiting


def _beginning(request: Request) -> str:
    parts, tokens = [], 0
    for segment in request.prompt:
        parts.append(f"{segment.number}:{min(segment.tokens, _HASHED_TOKENS - tokens)}")
        tokens += segment.tokens
        if tokens >= _HASHED_TOKENS:
            break
    return " ".join(parts)


def _weight(key: str, backend: int) -> bytes:
    return hashlib.blake2b(f"{backend} {key}".encode(), digest_size=8).digest()
