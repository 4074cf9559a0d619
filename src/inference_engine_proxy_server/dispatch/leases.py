"""Grants leases: one request's claim on one backend, at once or after a wait in the queue.

Everything here but the search for freed slots is synchronous. No ``await`` can come between the choice of a backend and
its lease, so a burst cannot send two requests to one free slot.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.dispatch.request_queue import RequestQueue
from inference_engine_proxy_server.dispatch.retry import is_repeatable
from inference_engine_proxy_server.errors import RequestMoved
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.fleet import Fleet, FleetObserver
from inference_engine_proxy_server.processes.worker_fairness import Fairness
from inference_engine_proxy_server.routing.choice import Choice
from inference_engine_proxy_server.routing.placement import Placement
from inference_engine_proxy_server.routing.requirements import Requirements
from inference_engine_proxy_server.routing.tracker import Tracker

__all__ = ["Dispatcher", "Lease"]

_LOOK_SECONDS = 0.02  # between two checks for slots that other workers freed
_LOOKS_LEFT_TO_OTHERS = 3


class Lease:
    """One request's claim on one backend, from its selection to the last byte. Closing it twice has no further effect.

    Args:
        choice: the selected backend, and why it was selected.
        dispatcher: fills the slot when it becomes free.

    Attributes:
        backend: the selected backend.
        tracker: follows the request so that routing learns from it; ``None`` if there is nothing to learn.
    """

    __slots__ = ("_dispatcher", "backend", "choice", "is_open", "tracker")

    def __init__(self, choice: Choice, dispatcher: Dispatcher) -> None:
        candidate = choice.candidate
        self.choice = choice
        self.backend = candidate.backend
        self.tracker: Tracker | None = None
        self.is_open = True
        self._dispatcher = dispatcher
        candidate.load.leases += 1
        candidate.rerank()

    def __repr__(self) -> str:
        return f"<Lease {'open' if self.is_open else 'closed'} on {self.backend!r}>"

    def close(self) -> None:
        """Release the lease."""
        if self.is_open:
            self.is_open = False
            if self.tracker is not None:
                self.tracker.close()
            candidate = self.choice.candidate
            candidate.load.leases -= 1
            candidate.rerank()
            if self._dispatcher.queue.count:
                self._dispatcher.fill_slots()


class Dispatcher(FleetObserver):
    """Grants leases.

    Args:
        fleet: the backends.
        placement: chooses among them.
        queue: requests that wait for a slot.
        fairness: decides whether this worker or another one may fill a slot that became free.
    """

    def __init__(
        self,
        fleet: Fleet,
        placement: Placement,
        queue: RequestQueue[Lease],
        fairness: Fairness,
    ) -> None:
        self.fleet = fleet
        self.placement = placement
        self.queue = queue
        self._remember_turn = placement.conversations.remember
        self._fairness = fairness
        fleet.subscribe(self)

    def __repr__(self) -> str:
        return f"<Dispatcher {self.requests_in_flight} leases, {self.queue!r}>"

    def lease(self, requirements: Requirements, excluded: Collection[Backend] = ()) -> Lease | None:
        """A lease on the best backend; ``None`` when all are full, or when earlier requests wait for the same ones.

        Args:
            requirements: the request's requirements.
            excluded: backends on which the request failed. If there are any, it overtakes waiting requests.

        Raises:
            CapacityError: no backend that serves the request is available.
            ClientError: 404, the models of all backends are known, and none serves this one.
        """
        if (
            self.queue.count
            and requirements.needs_slot
            and not excluded
            and self.queue.has_waiting(self.placement.lane(requirements))
        ):
            return None
        return self.try_lease(requirements, excluded)

    def try_lease(self, requirements: Requirements, excluded: Collection[Backend] = ()) -> Lease | None:
        """Like :meth:`lease`, but without regard to waiting requests."""
        choice = self.placement.choose(requirements, excluded)
        if choice is None:
            return None
        lease = Lease(choice, self)
        if requirements.turn_key is not None:
            self._remember_turn(requirements.turn_key, choice.candidate.url_key)
            if requirements.turn is not None:
                self.placement.conversations.remember_session(requirements.turn, choice.candidate)
        if requirements.prompt is not None:
            lease.tracker = self.placement.track(requirements, choice)
        if lease.backend.health.on_trial:
            lease.backend.begin_trial(lease)
            choice.candidate.review_rotation()
        return lease

    @property
    def requests_in_flight(self) -> int:
        """Leases of this worker on all backends."""
        return sum(backend.load.leases for backend in self.fleet.backends)

    @property
    def requests_waiting(self) -> int:
        """Requests in the queues of all workers."""
        return self._fairness.waiting(self.queue.count)

    def fill_slots(self) -> None:
        """Grant free slots to waiting requests, unless it is another worker's turn."""
        if self.queue.count and self._fairness.is_ours():
            self.queue.dispatch()

    async def fill_slots_of_siblings(self) -> None:
        """Check repeatedly for slots that other workers freed, until cancelled."""
        left = 0
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            self._fairness.publish_waiting(self.queue.count)
            # If other workers leave a slot unused for several checks, their requests wait for other models.
            left = 0 if self._fairness.is_ours() else (left + 1) % _LOOKS_LEFT_TO_OTHERS
            if not left and self.queue.count:
                self.queue.dispatch()

    # --- changes

    def on_replaced(self, backends: Sequence[Backend]) -> None:
        """See :class:`FleetObserver`."""
        del backends
        self.fill_slots()

    def on_reviewed(self, backend: Backend) -> None:
        """See :class:`FleetObserver`."""
        del backend
        self.fill_slots()

    def on_stuck(self, backend: Backend) -> None:
        """Take unanswered requests back from ``backend`` if another backend may serve them."""
        for connection, request in backend.connections.unanswered():
            if not isinstance(request, ProxiedRequest):
                continue
            head = request.head
            is_movable = not request.losses and is_repeatable(head.method, head.path)
            excluded = (backend,) if request.sink is None else (backend, *request.sink.excluded)
            if is_movable and self.placement.has_other(request.requirements, excluded):
                connection.give_up(RequestMoved("The backend did not answer."))
