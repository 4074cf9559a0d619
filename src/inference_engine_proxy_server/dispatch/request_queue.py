"""The queue of requests that wait for a free slot: their order, their number and the expected wait.

Higher priority goes first. Requests of equal priority are ordered by start-time fair queueing (Goyal et al., 1996):
each sender's requests take up virtual time in proportion to their estimated tokens, and the request that starts first
in virtual time is next. A sender that floods the queue therefore waits for its own requests, while an occasional sender
hardly waits.

Requests for different models wait in separate lanes: those for a busy model do not block others.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from inference_engine_proxy_server.errors import CapacityError, ProxyError
from inference_engine_proxy_server.tasks.deadlines import NEVER, Deadlines

__all__ = ["FIRST", "Claim", "QueueLimits", "QueuedRequest", "RequestQueue"]

_RATE_SECONDS = 10.0  # time constant of the average dispatch rate
_LONGEST_RETRY_SECONDS = 120.0
_REMEMBERED_SENDERS = 4096
_REMEMBERED_ABANDONED = 1024


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Limits of the queue.

    Attributes:
        requests: maximum number of waiting requests.
        seconds: maximum wait of each.
    """

    requests: int
    seconds: float


class Claim(Protocol):
    """The part of a lease that the queue needs."""

    def close(self) -> None:
        """Release the claim."""


C = TypeVar("C", bound=Claim)

FIRST = math.inf
"""Priority of a request whose backend failed: it goes first, and may join even a full queue."""


@dataclass(eq=False, slots=True)
class QueuedRequest(Generic[C]):
    """A request in the queue.

    Attributes:
        lane: all requests of one lane can be served by the same backends.
        sender: the client or key, for fairness.
        tokens: its estimated size.
        priority: higher goes first.
        try_lease: returns a lease, or ``None`` when no slot is free. Raises a ``ProxyError`` if waiting is pointless.
        queue: the queue in which it waits.
        most_seconds: how long it may wait, if that is less than usual.
        is_resumed: its client has a part of the reply already, so it waits as long as it takes.
        owner: the request that waits; the dashboard shows it.
        lease: receives the result of ``try_lease``, or the error that ends the wait.
        deadline: the time at which its wait ends.
        waits: whether it is in the queue now.
        starts_at: start of its service in virtual time.
    """

    lane: Hashable
    sender: Hashable
    tokens: float
    priority: float
    try_lease: Callable[[], C | None]
    queue: RequestQueue[C]
    most_seconds: float = math.inf
    is_resumed: bool = False
    owner: object = None
    lease: asyncio.Future[C] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    deadline: float = field(default=NEVER, init=False)
    waits: bool = field(default=False, init=False)
    starts_at: float = field(default=0.0, init=False)

    def __repr__(self) -> str:
        state = "waits" if self.waits else "left"
        return f"<QueuedRequest {state} lane={self.lane!r} sender={self.sender!r} priority={self.priority:g}>"

    @property
    def is_waiting(self) -> bool:
        """Whether it is queued and its client is connected. After a disconnect, the entry stays for a moment."""
        return self.waits and not self.lease.done()

    def on_deadline(self, now: float) -> None:
        """Leave the queue, because the wait was too long."""
        del now
        self.deadline = NEVER
        self.queue.time_out(self)


_Entry = tuple[float, float, int, QueuedRequest[C]]


class RequestQueue(Generic[C]):
    """The queue.

    Args:
        limits: the limits of the queue.
        deadlines: ends the waits.

    Attributes:
        count: number of waiting requests.
        timeouts: requests that waited for too long, since the start.
        rejections: requests that found the queue full, since the start.
    """

    def __init__(self, limits: QueueLimits, deadlines: Deadlines) -> None:
        self._limits = limits
        self._deadlines = deadlines
        self._lanes: dict[Hashable, list[_Entry[C]]] = {}  # heaps
        self._numbers = itertools.count()
        self._virtual_time = 0.0
        self._finish_of: dict[Hashable, float] = {}  # virtual time at which each sender's last request ends
        self._rate = 0.0  # dispatches a second
        self._dispatched_at = -math.inf
        self._abandoned = 0  # upper bound of requests that left but are still in their lanes
        self.count = 0
        self.timeouts = 0
        self.rejections = 0

    def __repr__(self) -> str:
        return f"<RequestQueue {self.count} waiting in {len(self._lanes)} lanes>"

    async def wait(self, request: QueuedRequest[C]) -> C:
        """Wait until ``request`` is dispatched, and return its lease.

        Raises:
            CapacityError: 429, the queue is full; 503, the request has waited for too long.
            ProxyError: raised by ``try_lease``.
        """
        if self.count >= self._limits.requests and request.priority != FIRST:
            self.rejections += 1
            raise self._too_much("Too many requests are waiting.", 429, "queue_full")
        if not request.is_resumed and request.most_seconds < (self.seconds_for(self.count + 1) or 0.0):
            raise self._too_much("No backend is expected to be free in time.", 503, "queue_timeout")
        self._join(request)
        lease = request.lease
        try:
            return await lease
        except asyncio.CancelledError:
            if lease.done() and not lease.cancelled() and lease.exception() is None:
                lease.result().close()  # granted at the same moment at which the client disconnected
            raise
        finally:
            self._leave(request)

    def has_waiting(self, lane: Hashable) -> bool:
        """Whether a request waits in ``lane``, which newcomers must not overtake."""
        return self.count > 0 and self._head_of(lane) is not None

    def dispatch(self) -> None:
        """Grant leases for the free slots."""
        heads = [head for lane in list(self._lanes) if (head := self._head_of(lane)) is not None]
        heapq.heapify(heads)
        while heads:
            request = heapq.heappop(heads)[3]
            try:
                lease = request.try_lease()
            except ProxyError as error:
                self._leave(request)
                request.lease.set_exception(error)
            else:
                if lease is None:
                    continue  # there is no slot for the rest of the lane either
                self._virtual_time = max(self._virtual_time, request.starts_at)
                self._leave(request)
                self._count_dispatch()
                request.lease.set_result(lease)
            following = self._head_of(request.lane)
            if following is not None:
                heapq.heappush(heads, following)

    def time_out(self, request: QueuedRequest[C]) -> None:
        """End the wait of ``request``, which was too long."""
        if request.is_waiting:
            self.timeouts += 1
            self._leave(request)
            request.lease.set_exception(self._too_much("No backend was free in time.", 503, "queue_timeout"))

    def retry_after_seconds(self) -> float:
        """When a client should try again, by the recent dispatch rate: 1 to 120 s."""
        seconds = self.seconds_for(self.count + 1)
        return min(max(self._limits.seconds if seconds is None else seconds, 1.0), _LONGEST_RETRY_SECONDS)

    def position(self, request: QueuedRequest[C]) -> int:
        """Position of ``request`` in its lane; 1 is next."""
        rank = (-request.priority, request.starts_at)
        lane = self._lanes.get(request.lane, ())
        return 1 + sum(entry[3].waits and entry[:2] < rank for entry in lane)

    def waiting(self) -> Iterator[tuple[QueuedRequest[C], int]]:
        """All waiting requests, and the position of each in its lane."""
        for heap in self._lanes.values():
            in_order = sorted(entry for entry in heap if entry[3].is_waiting)
            yield from ((entry[3], position) for position, entry in enumerate(in_order, 1))

    def seconds_for(self, requests: int) -> float | None:
        """The time to dispatch this many requests at the recent rate; ``None`` if none was dispatched recently."""
        rate = self._rate_at(self._deadlines.clock())
        return requests / rate if rate > 1e-3 else None

    # --- internals

    def _too_much(self, message: str, status: int, code: str) -> CapacityError:
        return CapacityError(message, status=status, code=code, retry_after_seconds=self.retry_after_seconds())

    def _join(self, request: QueuedRequest[C]) -> None:
        if len(self._finish_of) > _REMEMBERED_SENDERS:
            self._finish_of = {sender: at for sender, at in self._finish_of.items() if at > self._virtual_time}
        request.starts_at = max(self._virtual_time, self._finish_of.get(request.sender, 0.0))
        self._finish_of[request.sender] = request.starts_at + request.tokens
        entry = (-request.priority, request.starts_at, next(self._numbers), request)
        heapq.heappush(self._lanes.setdefault(request.lane, []), entry)
        request.waits = True
        self.count += 1
        if not request.is_resumed:
            request.deadline = self._deadlines.clock() + min(self._limits.seconds, request.most_seconds)
        self._deadlines.watch(request)

    def _leave(self, request: QueuedRequest[C]) -> None:
        """Remove ``request`` if it waits; its entry is removed when it reaches the head of its lane."""
        if not request.waits:
            return
        request.waits = False
        self._deadlines.forget(request)
        self.count -= 1
        self._abandoned += 1
        if not self.count:
            self._lanes.clear()
            self._finish_of.clear()
            self._virtual_time = 0.0
            self._abandoned = 0
        elif self._abandoned > self.count + _REMEMBERED_ABANDONED:
            self._remove_abandoned()

    def _remove_abandoned(self) -> None:
        for lane, heap in list(self._lanes.items()):
            heap[:] = [entry for entry in heap if entry[3].waits]
            heapq.heapify(heap)
            if not heap:
                del self._lanes[lane]
        self._abandoned = 0

    def _head_of(self, lane: Hashable) -> _Entry[C] | None:
        heap = self._lanes.get(lane)
        while heap and not heap[0][3].is_waiting:
            heapq.heappop(heap)
        if not heap:
            self._lanes.pop(lane, None)
            return None
        return heap[0]

    def _count_dispatch(self) -> None:
        now = self._deadlines.clock()
        self._rate = self._rate_at(now) + 1 / _RATE_SECONDS
        self._dispatched_at = now

    def _rate_at(self, now: float) -> float:
        return self._rate * math.exp((self._dispatched_at - now) / _RATE_SECONDS)
