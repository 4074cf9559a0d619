"""The life of a proxied request: get a lease or wait, send, retry on another backend if allowed, close the lease."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Collection, Mapping
from functools import partial

from inference_engine_proxy_server.dispatch.affinity_observer import AffinityObserver
from inference_engine_proxy_server.dispatch.attempt import Attempt, Attempts
from inference_engine_proxy_server.dispatch.fair_share import FairShare
from inference_engine_proxy_server.dispatch.learning_observer import LearningObserver
from inference_engine_proxy_server.dispatch.leases import Dispatcher, Lease
from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.dispatch.queue_updates import QueueUpdates
from inference_engine_proxy_server.dispatch.request_queue import FIRST, QueuedRequest
from inference_engine_proxy_server.dispatch.requirements_reader import RequirementsReader
from inference_engine_proxy_server.dispatch.retry import NextAttempt
from inference_engine_proxy_server.dispatch.unknown_model import Explanations
from inference_engine_proxy_server.errors import (
    BackendBroke,
    BackendDeclined,
    BackendError,
    BackendLacks,
    BackendTimeout,
    BackendUnreachable,
    CapacityError,
    ClientError,
    EngineLacks,
    ProxyError,
)
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.routing.affinity import AffinityTable
from inference_engine_proxy_server.routing.decisions import Decisions
from inference_engine_proxy_server.routing.requirements import beyond
from inference_engine_proxy_server.telemetry.journal import BACKEND, Journal
from inference_engine_proxy_server.telemetry.request_metrics import RequestMetrics
from inference_engine_proxy_server.wire.reply_observer import ReplyObserver

__all__ = ["Forwarder"]

_BACK_OFF_SECONDS = 0.025  # upper bound of a random pause: Envoy's base interval
_NOT_EXCLUDED: Mapping[Backend, BackendError] = {}


class Forwarder:
    """Forwards requests to backends.

    Args:
        dispatcher: grants leases.
        decisions: records why each backend was chosen.
        metrics: counts repeated requests. journal: notes them.
        fair_share: orders the requests that must wait.
        updates: sends queue positions to waiting streams.
        attempts: sends requests to backends.
        affinities: which backend holds what.
        explanations: of the errors for clients.

    Attributes:
        reader: reads what requests require.
    """

    reader: type[RequirementsReader] = RequirementsReader

    def __init__(
        self,
        dispatcher: Dispatcher,
        decisions: Decisions,
        metrics: RequestMetrics,
        journal: Journal,
        fair_share: FairShare,
        updates: QueueUpdates,
        attempts: Attempts,
        affinities: AffinityTable,
        explanations: Explanations,
    ) -> None:
        self._dispatcher = dispatcher
        self._placement = dispatcher.placement
        self._decisions = decisions
        self._metrics = metrics
        self._journal = journal
        self._fair_share = fair_share
        self._updates = updates
        self._attempts = attempts
        self._budget = attempts.budget
        self._affinities = affinities
        self._read_requirements = self.reader(dispatcher.placement, affinities).read
        self._explanations = explanations

    async def forward(self, request: ProxiedRequest, excluded: Mapping[Backend, BackendError] = _NOT_EXCLUDED) -> None:
        """Send ``request`` to the best backend and relay the reply.

        Args:
            request: nothing of its reply was sent, or its stream is being resumed.
            excluded: backends that get no attempt, with the reason for each.

        Raises:
            ProxyError: no backend can serve the request; or its reply began and cannot be completed.
        """
        request.requirements = requirements = self._read_requirements(request)
        self._budget.requests += 1
        failed = dict(excluded)
        try:
            while True:
                lease = self._dispatcher.lease(requirements, failed) or await self._wait(request, failed)
                observers: tuple[ReplyObserver, ...] = ()
                request.rule = lease.choice.rule
                request.attempts += 1
                try:
                    if lease.choice.decision is not None:
                        decision = lease.choice.decision
                        request.decision = decision
                        request.common_fields = self._decisions.record(decision, request, request.resumes, failed)
                    if lease.tracker is not None or requirements.affinity is not None:
                        observers = self._observe(request, lease)
                    return await self._attempts.send(Attempt(request, lease.backend, failed, request.body))
                except BackendError as error:
                    if observers and not request.done:  # else they have been let go
                        request.observers.remove(*observers)
                    if not self._take_failure(request, lease.backend, error, failed):
                        raise
                    requirements = request.requirements
                finally:
                    lease.close()
                await _back_off(failed)
        except (CapacityError, ClientError) as error:  # no other backend can serve the request
            _raise_failure(failed)  # a backend received the request, so "no capacity" would be wrong
            if isinstance(error, ClientError):
                raise self._explanations.of(error, request) from None
            raise
        finally:
            if failed:
                self._close_failures(request, failed)

    def may_repeat(self, request: ProxiedRequest, error: BackendError) -> bool:
        """Whether the request, of whose reply nothing was sent, may go to another backend after ``error``."""
        return self._attempts.next(request, error) is NextAttempt.OTHER_BACKEND

    def has_other(self, request: ProxiedRequest, excluded: Collection[Backend]) -> bool:
        """Whether a backend that is not ``excluded`` takes the request; it may be full."""
        return self._placement.has_other(request.requirements, excluded)

    def _observe(self, request: ProxiedRequest, lease: Lease) -> tuple[ReplyObserver, ...]:
        """Make routing learn from the reply of this attempt."""
        observers: tuple[ReplyObserver, ...] = ()
        if lease.tracker is not None:
            observers = (LearningObserver(request, lease.tracker),)
        affinity = request.requirements.affinity
        if affinity is not None:
            owner = None if request.access is None else request.access.key.name
            observers += (AffinityObserver(self._affinities, request, affinity, lease.backend, owner),)
            if affinity.stream is not None:
                self._affinities.remember(affinity.stream, lease.backend, owner)
        if observers:  # a reply without observers takes a shorter path
            request.observers.add(*observers)
        return observers

    def _take_failure(
        self, request: ProxiedRequest, backend: Backend, error: BackendError, failed: dict[Backend, BackendError]
    ) -> bool:
        """Record a failed attempt. Returns whether another attempt may be made."""
        failed[backend] = error
        request.watch.attempt_failed(backend.url, error)
        request.source = None  # its connection may serve another request by now
        if isinstance(error, EngineLacks):
            request.requirements = beyond(request.requirements, backend)
        if isinstance(error, BackendLacks):
            return True
        self._attempts.report(backend, error)
        timeouts = sum(isinstance(one, BackendUnreachable) and one.timed_out for one in failed.values())
        may_go_on = self._attempts.next(request, error, timeouts) is not NextAttempt.NONE
        if request.awaits_reply:
            request.losses += not isinstance(error, BackendUnreachable)
        if may_go_on:
            self._metrics.count_retry(error.code)
            text = (
                f"Request {request.request_id} goes to another backend, because backend {BACKEND} failed: {error.code}."
            )
            self._journal.note("retry", text, severity="warning", backend=backend.url, like=error.code)
        return may_go_on

    def _close_failures(self, request: ProxiedRequest, failed: dict[Backend, BackendError]) -> None:
        """The request is over: learn from its failed attempts, and release what they hold."""
        self._attempts.learn_path(request, failed)
        if any(isinstance(error, BackendDeclined) for error in failed.values()):
            self._budget.release()
        failed.clear()  # the tracebacks of these errors refer to this dictionary: a reference cycle

    async def _wait(self, request: ProxiedRequest, failed: Mapping[Backend, BackendError]) -> Lease:
        """Wait in the queue for a lease. A request that failed on a backend goes before all others."""
        queue, requirements = self._dispatcher.queue, request.requirements
        lane = self._placement.lane(requirements)
        queued = QueuedRequest(
            lane=(lane, *failed) if failed else lane,  # backends on which it failed are excluded
            sender=self._fair_share.sender(request),
            tokens=self._fair_share.tokens(request, self._placement.needed_prompt(requirements)),
            priority=self._fair_share.priority(request) if not failed else FIRST,
            try_lease=partial(self._dispatcher.try_lease, requirements, tuple(failed)),
            queue=queue,
            most_seconds=math.inf if request.fallback_after_seconds is None else request.fallback_after_seconds,
            is_resumed=request.sink is not None and request.sink.is_at_seam,
            owner=request,
        )
        clock = self._dispatcher.fleet.clock
        began_at = clock()
        request.watch.joined_queue()
        request.is_waiting = True
        try:
            with self._placement.waiting(requirements, failed):
                async with self._updates.during(request, queued):
                    return await queue.wait(queued)
        except (ProxyError, asyncio.CancelledError):
            self._dispatcher.fill_slots()  # models may have been kept from requests because this one waited
            raise
        finally:
            request.is_waiting = False
            request.queue_seconds += clock() - began_at
            request.watch.left_queue()


def _raise_failure(failed: Mapping[Backend, BackendError]) -> None:
    for error in failed.values():
        if isinstance(error, (BackendBroke, BackendTimeout)):
            try:
                raise error from None
            finally:
                del error  # its traceback refers to this frame: a reference cycle


async def _back_off(failed: Mapping[Backend, BackendError]) -> None:
    """After a declined attempt, pause for a random moment, so that declined requests do not return together."""
    *_, last = failed.values()
    if isinstance(last, BackendDeclined):
        await asyncio.sleep(random.uniform(0, _BACK_OFF_SECONDS))
