"""Requests that wait for a free backend: who is next, how many may wait, and how long it will take.

Higher priority goes first. Among equals it is start-time fair queueing (Goyal et al., 1996): each sender's requests
take up virtual time by their estimated tokens, and the request that would begin first in virtual time is next. So a
sender that floods the line waits behind its own requests, and one that asks now and then hardly waits at all.

Requests for different models wait in lanes of their own: who waits for a busy model holds up nobody else.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from inference_engine_proxy_server.errors import CapacityError, ProxyError
from inference_engine_proxy_server.tasks.deadlines import NEVER, Deadlines

__all__ = ["FIRST", "Place", "QueueLimits", "QueuedRequest", "RequestQueue"]

_RATE_SECONDS = 10.0  # over which the rate of dispatches is averaged
_LONGEST_RETRY_SECONDS = 120.0
_REMEMBERED_SENDERS = 4096
_REMEMBERED_GONE = 1024


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """Bounds of the line.

    Attributes:
        requests: how many may wait.
        seconds: how long each may wait.
    """

    requests: int
    seconds: float


class Place(Protocol):
    """What is waited for."""

    def close(self) -> None:
        """Give it back."""


P = TypeVar("P", bound=Place)

FIRST = math.inf
"""Priority of who had a place already and lost it through no fault of its own: goes before all, and always fits in."""


@dataclass(eq=False, slots=True)
class QueuedRequest(Generic[P]):
    """A request in line.

    Attributes:
        lane: what it waits for; requests of one lane can be served by the same backends.
        sender: whose request it is.
        tokens: how much work it is, as far as can be told.
        priority: higher goes first.
        take_place: a place for it, now; ``None``: there is none yet. Raises a ``ProxyError`` if waiting is in vain.
        line: where it waits.
        place: done with what ``take_place`` gave, or with the error that ends its waiting.
        deadline: when it has waited for too long.
        waits: it is in line now.
        starts_at: when its turn is among those of its priority, in virtual time.
    """

    lane: Hashable
    sender: Hashable
    tokens: float
    priority: float
    take_place: Callable[[], P | None]
    line: RequestQueue[P]
    place: asyncio.Future[P] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    deadline: float = field(default=NEVER, init=False)
    waits: bool = field(default=False, init=False)
    starts_at: float = field(default=0.0, init=False)

    @property
    def is_waiting(self) -> bool:
        """It is in line, and has not been told to leave: whose client has gone leaves a moment later."""
        return self.waits and not self.place.done()

    def on_deadline(self, now: float) -> None:
        """It has waited for too long."""
        del now
        self.deadline = NEVER
        self.line.dismiss(self)


_Entry = tuple[float, float, int, QueuedRequest[P]]


class RequestQueue(Generic[P]):
    """The line.

    Args:
        limits: its bounds.
        deadlines: watches those who wait.

    Attributes:
        count: how many wait.
        timeouts, rejections: how many were sent away so far, having waited for too long or finding the line full.
    """

    def __init__(self, limits: QueueLimits, deadlines: Deadlines) -> None:
        self._limits = limits
        self._deadlines = deadlines
        self._lanes: dict[Hashable, list[_Entry[P]]] = {}  # heaps
        self._numbers = itertools.count()
        self._virtual_time = 0.0
        self._finish_of: dict[Hashable, float] = {}  # of each sender's last request, in virtual time
        self._rate = 0.0  # dispatches a second
        self._dispatched_at = -math.inf
        self._gone = 0  # how many have left, at most, that are still in their lanes
        self.count = 0
        self.timeouts = 0
        self.rejections = 0

    async def wait(self, waiter: QueuedRequest[P]) -> P:
        """A place for ``waiter``, when it is its turn.

        Raises:
            CapacityError: 429, the line is full; 503, it has waited for too long.
            ProxyError: what ``take_place`` raised.
        """
        if self.count >= self._limits.requests and waiter.priority != FIRST:
            self.rejections += 1
            raise self._too_much("Too many requests are waiting.", 429, "queue_full")
        self._join(waiter)
        place = waiter.place
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled() and place.exception() is None:
                place.result().close()  # it came in the very moment in which its client left
            raise
        finally:
            self._leave(waiter)

    def is_waited_for(self, lane: Hashable) -> bool:
        """Whether somebody waits in ``lane``, whom a newcomer must not overtake."""
        return self.count > 0 and self._head_of(lane) is not None

    def dispatch(self) -> None:
        """Give out the places that there are."""
        heads = [head for lane in list(self._lanes) if (head := self._head_of(lane)) is not None]
        heapq.heapify(heads)
        while heads:
            waiter = heapq.heappop(heads)[3]
            try:
                place = waiter.take_place()
            except ProxyError as error:
                self._leave(waiter)
                waiter.place.set_exception(error)
            else:
                if place is None:
                    continue  # nor is there one for whoever else is in its lane
                self._virtual_time = max(self._virtual_time, waiter.starts_at)
                self._leave(waiter)
                self._note_dispatch()
                waiter.place.set_result(place)
            following = self._head_of(waiter.lane)
            if following is not None:
                heapq.heappush(heads, following)

    def dismiss(self, waiter: QueuedRequest[P]) -> None:
        """``waiter`` has waited for too long."""
        if waiter.is_waiting:
            self.timeouts += 1
            self._leave(waiter)
            waiter.place.set_exception(self._too_much("No backend was free in time.", 503, "queue_timeout"))

    def retry_after_seconds(self) -> float:
        """When it makes sense to ask again, at the rate of late: 1 to 120 s."""
        seconds = self.seconds_for(self.count + 1)
        return min(max(self._limits.seconds if seconds is None else seconds, 1.0), _LONGEST_RETRY_SECONDS)

    def position(self, waiter: QueuedRequest[P]) -> int:
        """Which of its lane it is: 1 is the next."""
        rank = (-waiter.priority, waiter.starts_at)
        lane = self._lanes.get(waiter.lane, ())
        return 1 + sum(entry[3].waits and entry[:2] < rank for entry in lane)

    def seconds_for(self, requests: int) -> float | None:
        """How long it takes to dispatch so many, at the rate of late; ``None``: nothing was dispatched of late."""
        rate = self._rate_at(self._deadlines.clock())
        return requests / rate if rate > 1e-3 else None

    # --- inside

    def _too_much(self, message: str, status: int, code: str) -> CapacityError:
        return CapacityError(message, status=status, code=code, retry_after_seconds=self.retry_after_seconds())

    def _join(self, waiter: QueuedRequest[P]) -> None:
        if len(self._finish_of) > _REMEMBERED_SENDERS:
            self._finish_of = {who: at for who, at in self._finish_of.items() if at > self._virtual_time}
        waiter.starts_at = max(self._virtual_time, self._finish_of.get(waiter.sender, 0.0))
        self._finish_of[waiter.sender] = waiter.starts_at + waiter.tokens
        entry = (-waiter.priority, waiter.starts_at, next(self._numbers), waiter)
        heapq.heappush(self._lanes.setdefault(waiter.lane, []), entry)
        waiter.waits = True
        self.count += 1
        waiter.deadline = self._deadlines.clock() + self._limits.seconds
        self._deadlines.watch(waiter)

    def _leave(self, waiter: QueuedRequest[P]) -> None:
        """Take ``waiter`` out, if it is still in; its lane forgets it when it comes to the head."""
        if not waiter.waits:
            return
        waiter.waits = False
        self._deadlines.forget(waiter)
        self.count -= 1
        self._gone += 1
        if not self.count:
            self._lanes.clear()
            self._finish_of.clear()
            self._virtual_time = 0.0
            self._gone = 0
        elif self._gone > self.count + _REMEMBERED_GONE:
            self._forget_gone()

    def _forget_gone(self) -> None:
        for lane, heap in list(self._lanes.items()):
            heap[:] = [entry for entry in heap if entry[3].waits]
            heapq.heapify(heap)
            if not heap:
                del self._lanes[lane]
        self._gone = 0

    def _head_of(self, lane: Hashable) -> _Entry[P] | None:
        heap = self._lanes.get(lane)
        while heap and not heap[0][3].is_waiting:
            heapq.heappop(heap)
        if not heap:
            self._lanes.pop(lane, None)
            return None
        return heap[0]

    def _note_dispatch(self) -> None:
        now = self._deadlines.clock()
        self._rate = self._rate_at(now) + 1 / _RATE_SECONDS
        self._dispatched_at = now

    def _rate_at(self, now: float) -> float:
        return self._rate * math.exp((self._dispatched_at - now) / _RATE_SECONDS)
