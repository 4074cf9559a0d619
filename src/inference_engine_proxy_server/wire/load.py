"""What the clients hold at the moment, and how much of it they may hold.

Plain numbers, because every request passes by them: ``overload.overload_guard`` changes the bounds,
and the connections compare.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Protocol

__all__ = ["Load", "OpenConnection"]

_LOOK_SECONDS = 0.1  # between two searches for idle connections: one that finds none looks at all of them
_FOUND_AT_A_TIME = 1024  # so that a burst of new connections is one search


class OpenConnection(Protocol):
    """A client's connection."""

    deadline: float

    @property
    def is_idle(self) -> bool:
        """It waits for a request, and nothing of one has come."""

    def close_idle(self) -> None:
        """Close it; it is idle."""


class Load:
    """The clients' connections, and what their requests take.

    Args:
        clock: seconds that only grow.
        most_connections, most_requests, most_body_bytes: bounds.

    Attributes:
        requests: how many are being served.
        body_bytes: of the bodies of those, and of what has come of others.
        ends_connections: no connection is kept open after its next reply.
        connections: those that are served; who was turned away is not among them.
    """

    __slots__ = (
        "_clock", "_idle", "_look_at", "_turned_away", "body_bytes", "connections", "ends_connections",
        "most_body_bytes", "most_connections", "most_requests", "requests",
    )  # fmt: skip

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        most_connections: float = float("inf"),
        most_requests: float = float("inf"),
        most_body_bytes: float = float("inf"),
    ) -> None:
        self._clock = clock
        self.most_connections = most_connections
        self.most_requests = most_requests
        self.most_body_bytes = most_body_bytes
        self.requests = 0
        self.body_bytes = 0
        self.ends_connections = False
        self.connections: set[OpenConnection] = set()
        self._turned_away: set[OpenConnection] = set()
        self._idle: list[tuple[OpenConnection, float]] = []  # with the deadline it had, the longest idle one last
        self._look_at = 0.0

    def enter(self, connection: OpenConnection) -> bool:
        """Whether a new connection may stay; an idle one is closed for it if need be. :meth:`leave` must follow."""
        if len(self.connections) < self.most_connections or self.close_longest_idle():
            self.connections.add(connection)
            return True
        self._turned_away.add(connection)
        return False

    @property
    def is_mobbed(self) -> bool:
        """So many are being turned away that there is no room even to tell them."""
        return len(self._turned_away) > max(self.most_connections / 10, 8)

    def leave(self, connection: OpenConnection) -> None:
        """The connection is over."""
        self.connections.discard(connection)
        self._turned_away.discard(connection)

    def close_longest_idle(self) -> bool:
        """Close the connection that has waited for a request for longest; ``False``: none waits."""
        now = self._clock()
        if not self._idle and now >= self._look_at:
            idle = ((connection, connection.deadline) for connection in self.connections if connection.is_idle)
            self._idle = heapq.nsmallest(_FOUND_AT_A_TIME, idle, key=lambda found: found[1])[::-1]
            if len(self._idle) < _FOUND_AT_A_TIME:  # else there are more
                self._look_at = now + _LOOK_SECONDS
        while self._idle:
            connection, deadline = self._idle.pop()
            if connection.is_idle and connection.deadline == deadline:  # else it has been used since
                connection.close_idle()
                return True
        return False
