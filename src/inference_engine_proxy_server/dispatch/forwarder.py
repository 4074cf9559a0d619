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
from inference_engine_proxy_server.requests.content import NO_MESSAGES, model_problem, read_content
from inference_engine_proxy_server.requests.destinations import Destination
from inference_engine_proxy_server.requests.prompt import read_prompt
from inference_engine_proxy_server.requests.turns import NO_TURN, turn_of
from inference_engine_proxy_server.routing.affinity import Affinity, AffinityTable
from inference_engine_proxy_server.routing.decisions import Decisions
from inference_engine_proxy_server.routing.placement import Placement
from inference_engine_proxy_server.routing.requirements import Requirements, beyond
from inference_engine_proxy_server.telemetry.journal import BACKEND, Journal
from inference_engine_proxy_server.telemetry.request_metrics import RequestMetrics
from inference_engine_proxy_server.wire.reply_observer import ReplyObserver

__all__ = ["Forwarder"]

_STORES_COMPLETION = Affinity(None, None, None, creates_response=False, deletes=False, creates_completion=True)
_LOADS_NOTHING = b"autoload=false"  # in the query: a llama.cpp router then answers only for models in memory
_BACK_OFF_SECONDS = 0.025  # upper bound of a random pause: Envoy's base interval


_NOT_EXCLUDED: Mapping[Backend, BackendError] = {}
_WITHOUT_CONTENT = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})  # engines ignore the bodies of these


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
    """

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
        self._explanations = explanations

    async def forward(self, request: ProxiedRequest, excluded: Mapping[Backend, BackendError] = _NOT_EXCLUDED) -> None:
        """Send ``request`` to the best backend and relay the reply.

        Args:
            request: nothing of its reply was sent, or its stream is being resumed.
            excluded: backends that get no attempt, with the reason for each.

        Raises:
            ProxyError: no backend can serve the request; or its reply began and cannot be completed.
        """
        request.requirements = requirements = self._requirements(request)
        self._budget.requests += 1
        failed = dict(excluded)
        try:
            while True:
                lease = self._dispatcher.lease(requirements, failed) or await self._wait(request, failed)
                observers: tuple[ReplyObserver, ...] = ()
                request.policy = lease.choice.rule.name
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

    def _requirements(self, request: ProxiedRequest) -> Requirements:
        """What ``request`` requires of a backend.

        The prompt is read only if a policy reads prompts, or if contexts of different lengths make its length matter.
        """
        head = request.head
        takes_slot = head.destination is Destination.WORK
        affinity = None
        if not takes_slot:
            if head.destination is not Destination.LIGHT:
                affinity = self._affinity(request)
                takes_slot = head.destination is Destination.TIED
            elif _LOADS_NOTHING in head.target and request.content.model is not None:
                request.model = request.content.model
                return Requirements(request.model, needs_slot=False, loads_nothing=True)
        elif head.access is not None and _may_store(request):
            affinity = _STORES_COMPLETION
        if takes_slot and self._placement.reads_prompts:
            requirements = _with_prompt(request, affinity, self._placement)
        else:
            content = request.content
            if request.model is None:
                request.model = content.model
            messages = content.raw_messages if takes_slot else NO_MESSAGES
            if affinity is not None and affinity.creates_response:
                messages = content.raw_input
            key, turn = turn_of(request.model, messages, head.passed_on) if messages else NO_TURN
            requirements = Requirements(request.model, takes_slot, affinity=affinity, turn_key=key, turn=turn)
        if requirements.model is None:
            self._require_readable_model(request)
            if affinity is None or not affinity.is_required:
                requirements = self._placement.without_lacking(requirements, head.method, head.path)
        return requirements

    def _require_readable_model(self, request: ProxiedRequest) -> None:
        """Reject a body whose model only an engine might be able to read, if backends serve different models."""
        head = request.head
        if request.body and self._placement.models_differ and head.destination is not Destination.NAMED:
            problem = model_problem(head.passed_on, request.body)
            if problem is not None and head.method not in _WITHOUT_CONTENT:
                try:
                    raise problem
                finally:
                    del problem  # its traceback refers to this frame: a reference cycle

    def _affinity(self, request: ProxiedRequest) -> Affinity:
        if request.head.destination is Destination.BLOCKED:
            message = "This path controls the engine itself; it is blocked here by BLOCKED_PATHS."
            raise ClientError(message, status=403, code="path_blocked")
        if request.head.destination is Destination.MISJOINED:
            message = "The path has a doubled slash: remove the slash at the end of the base URL in the client."
            raise ClientError(message, status=404, code="doubled_slash")
        return self._affinities.affinity(request.head, request.content)

    def _observe(self, request: ProxiedRequest, lease: Lease) -> tuple[ReplyObserver, ...]:
        """Make routing learn from the reply of this attempt."""
        observers: list[ReplyObserver] = []
        if lease.tracker is not None:
            observers.append(LearningObserver(request, lease.tracker))
        affinity = request.requirements.affinity
        if affinity is not None:
            owner = None if request.access is None else request.access.key.name
            observers.append(AffinityObserver(self._affinities, request, affinity, lease.backend, owner))
            if affinity.stream is not None:
                self._affinities.remember(affinity.stream, lease.backend, owner)
        for observer in observers:
            request.observers.add(observer)
        return tuple(observers)

    def _take_failure(
        self, request: ProxiedRequest, backend: Backend, error: BackendError, failed: dict[Backend, BackendError]
    ) -> bool:
        """Record a failed attempt. Returns whether another attempt may be made."""
        failed[backend] = error
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
            owner=request,
        )
        clock = self._dispatcher.fleet.clock
        began_at = clock()
        try:
            with self._placement.waiting(requirements, failed):
                async with self._updates.during(request, queued):
                    return await queue.wait(queued)
        except (ProxyError, asyncio.CancelledError):
            self._dispatcher.fill_slots()  # models may have been kept from requests because this one waited
            raise
        finally:
            request.queue_seconds += clock() - began_at


def _with_prompt(request: ProxiedRequest, affinity: Affinity | None, placement: Placement) -> Requirements:
    head = request.head
    if request.model is None and placement.router.policies.by_model:
        request.model = request.content.model
    policy = placement.policy(request.model)
    key, turn = NO_TURN
    if not policy.reads_prompts:
        # Read again: the usual content has the messages one by one, for policies that read prompts.
        content = read_content(head.target, request.body, head.passed_on)
        is_response = affinity is not None and affinity.creates_response
        messages = content.raw_input if is_response else content.raw_messages
        if messages:
            key, turn = turn_of(request.model or content.model, messages, head.passed_on)
        if not placement.reads_every_prompt:
            return Requirements(request.model, policy=policy, affinity=affinity, turn_key=key, turn=turn)
    sizes, content = placement.token_sizes(policy), request.read_with_prompt()
    prompt = read_prompt(head.target, head.path, head.passed_on, request.body, sizes, content)
    request.model = request.model or prompt.model
    return Requirements(request.model, prompt=prompt, policy=policy, affinity=affinity, turn_key=key, turn=turn)


def _may_store(request: ProxiedRequest) -> bool:
    """Whether ``request`` may ask the engine to store a chat completion. A guess: a wrong answer is harmless."""
    return request.head.path.endswith("/chat/completions") and b'"store"' in request.body


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
