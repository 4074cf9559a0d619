"""The resources that clients use now, and their limits.

These are plain numbers, because every request checks them. ``overload.overload_guard`` sets the limits, and client
connections enforce them.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Protocol

from inference_engine_proxy_server.wire.exchange import Exchange

__all__ = ["Load", "OpenConnection"]

_SEARCH_SECONDS = (
    0.1  # interval of searches for idle connections, because a search without results scans all connections
)
_SEARCH_RESULTS = 1024  # enough for a burst of new connections to need only one search


class OpenConnection(Protocol):
    """A client's connection."""

    deadline: float

    @property
    def exchange(self) -> Exchange | None:
        """The request that is being answered; ``None`` between two requests."""

    @property
    def is_idle(self) -> bool:
        """The connection waits for a request, and no byte of one has arrived."""

    def close(self) -> None:
        """Close the connection, which must be idle."""


class Load:
    """The clients' connections, and the resources that their requests use.

    Args:
        clock: monotonic clock, in seconds.
        most_connections, most_requests, most_body_bytes: limits.

    Attributes:
        requests: number of requests being served.
        body_bytes: total size of buffered request bodies, including incomplete ones.
        ends_connections: every connection closes after its next reply.
        connections: the admitted connections, without the rejected ones.
    """

    __slots__ = (
        "_clock", "_idle", "_rejected", "_search_at", "body_bytes", "connections", "ends_connections",
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
        self._rejected: set[OpenConnection] = set()
        self._idle: list[tuple[OpenConnection, float]] = []  # with its deadline when found; the longest idle one last
        self._search_at = 0.0

    def enter(self, connection: OpenConnection) -> bool:
        """Admit a new connection, closing an idle one if necessary; ``False`` rejects it.

        :meth:`leave` must follow in both cases.
        """
        if len(self.connections) < self.most_connections or self.close_longest_idle():
            self.connections.add(connection)
            return True
        self._rejected.add(connection)
        return False

    @property
    def is_flooded(self) -> bool:
        """Whether too many rejected connections are open to send each of them an error reply."""
        return len(self._rejected) > max(self.most_connections / 10, 8)

    def leave(self, connection: OpenConnection) -> None:
        """Forget a connection that has ended."""
        self.connections.discard(connection)
        self._rejected.discard(connection)

    def close_longest_idle(self) -> bool:
        """Close the connection that has been idle for longest; ``False`` if no connection is idle."""
        now = self._clock()
        if not self._idle and now >= self._search_at:
            idle = ((connection, connection.deadline) for connection in self.connections if connection.is_idle)
            self._idle = heapq.nsmallest(_SEARCH_RESULTS, idle, key=lambda found: found[1])[::-1]
            if len(self._idle) < _SEARCH_RESULTS:  # otherwise there may be more
                self._search_at = now + _SEARCH_SECONDS
        while self._idle:
            connection, deadline = self._idle.pop()
            if connection.is_idle and connection.deadline == deadline:  # not used since the search
                connection.close()
                return True
        return False
