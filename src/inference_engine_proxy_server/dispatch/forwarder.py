"""One request on its way: choose a backend, send, and send elsewhere if that failed and may be tried again."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Mapping
from functools import partial

from inference_engine_proxy_server.dispatch.fair_share import FairShare
from inference_engine_proxy_server.dispatch.leases import Dispatcher, Lease
from inference_engine_proxy_server.dispatch.listening_tail import ListeningTail
from inference_engine_proxy_server.dispatch.queue_updates import QueueUpdates
from inference_engine_proxy_server.dispatch.request_queue import FIRST, QueuedRequest
from inference_engine_proxy_server.dispatch.retry import NextAttempt, RetryBudget, next_attempt
from inference_engine_proxy_server.errors import (
    DECLINABLE_STATUSES,
    BackendBroke,
    BackendDeclined,
    BackendError,
    BackendLacks,
    BackendTimeout,
    BackendUnreachable,
    CapacityError,
    ClientError,
    InvalidReply,
)
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.requests.destinations import Destination
from inference_engine_proxy_server.requests.prompt import read_prompt
from inference_engine_proxy_server.requests.requested_model import requested_model
from inference_engine_proxy_server.routing.affinity import Affinity, AffinityTable, AffinityTail
from inference_engine_proxy_server.routing.decisions import Decisions
from inference_engine_proxy_server.routing.placement import Placement
from inference_engine_proxy_server.routing.requirements import Requirements
from inference_engine_proxy_server.tasks.light_task import Completion
from inference_engine_proxy_server.telemetry.request_metrics import RequestMetrics
from inference_engine_proxy_server.wire.backend_connection import BackendConnection
from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.late_reply import LateReply
from inference_engine_proxy_server.wire.reply_sink import HeldReply

__all__ = ["Forwarder"]

_FAILURE_STATUSES = frozenset({500, 502, 503, 504})  # a backend's own; 501 and 505 are about the request
_BACK_OFF_SECONDS = 0.025  # at most, and at random: Envoy's base interval; the next backend is another one anyway
_ASKED = 16  # backends, for what one of them may have
_RETRY_AFTER = re.compile(rb"(?:^|\n)retry-after:[ \t]*([0-9]{1,6})", re.IGNORECASE)


class Forwarder:
    """Answers exchanges by passing them on to a backend.

    Args:
        dispatcher: grants leases.
        decisions: records why requests went where.
        metrics: told of repeated requests.
        standing: whose turn it is when requests must wait.
        updates: tells them how long they must.
        names_backend: whether replies say, in ``x-backend``, who gave them.
        keeps_credentials: whether clients' keys go on to backends that have none of ours.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        decisions: Decisions,
        metrics: RequestMetrics,
        standing: FairShare,
        updates: QueueUpdates,
        *,
        names_backend: bool,
        keeps_credentials: bool = True,
    ) -> None:
        self._keeps_credentials = keeps_credentials
        self._dispatcher = dispatcher
        self._fleet = dispatcher.fleet
        self._placement = dispatcher.placement
        self._decisions = decisions
        self._metrics = metrics
        self._standing = standing
        self._updates = updates
        self._names_backend = names_backend
        self._budget = RetryBudget(dispatcher.fleet.clock)
        self._bonds = AffinityTable(lambda: dispatcher.fleet.backends)

    async def forward(self, exchange: Exchange) -> None:
        """Give ``exchange`` the reply of the best backend.

        Raises:
            ProxyError: there is none; or, with its reply begun, it will not be complete.
        """
        head = exchange.head
        takes_slot = head.destination is Destination.WORK
        bond = None
        if not takes_slot and head.destination is not Destination.LIGHT:
            bond = self._bond_of(exchange)
            takes_slot = head.destination is Destination.TIED
        if takes_slot and self._placement.reads_prompts:
            wanted = _with_prompt(exchange, bond, self._placement)
        else:
            if exchange.model is None:
                exchange.model = requested_model(head.target, exchange.body)
            wanted = Requirements(exchange.model, takes_slot, affinity=bond)
        exchange.wanted = wanted
        self._budget.requests += 1
        failed: dict[Backend, BackendError] = {}
        try:
            while True:
                lease = self._dispatcher.lease(wanted, failed) or await self._wait(exchange, wanted, failed)
                if lease.choice.decision is not None:
                    self._decisions.note(lease.choice.decision, exchange)
                try:
                    if lease.tracker is None and bond is None:
                        return await self._send(exchange, lease.backend, failed)
                    return await self._send_and_learn(exchange, lease, failed)
                except BackendError as error:
                    self._note_failure(exchange, lease.backend, error, failed)
                finally:
                    lease.close()
                await _back_off(failed)
        except (CapacityError, ClientError):  # nobody else is there
            _raise_broken(failed)  # it was sent, so that would not be the truth
            raise
        finally:
            if failed and any(isinstance(error, BackendDeclined) for error in failed.values()):
                self._budget.release()

    def _bond_of(self, exchange: Exchange) -> Affinity:
        """What ties an unusual request."""
        if exchange.head.destination is Destination.BLOCKED:
            message = "This path controls the engine itself; it is blocked here by BLOCKED_PATHS."
            raise ClientError(message, status=403, code="path_blocked")
        return self._bonds.of(exchange)

    def _note_failure(
        self, exchange: Exchange, backend: Backend, error: BackendError, failed: dict[Backend, BackendError]
    ) -> None:
        """Raises ``error`` unless another attempt may be made."""
        failed[backend] = error
        if isinstance(error, BackendLacks):
            return
        self._report(backend, error)
        timeouts = sum(isinstance(one, BackendUnreachable) and one.timed_out for one in failed.values())
        if self._next_attempt(exchange, error, timeouts) is NextAttempt.NONE:
            raise error
        self._metrics.count_retry(error.code)
        exchange.losses += not isinstance(error, BackendUnreachable)

    async def _wait(self, exchange: Exchange, wanted: Requirements, failed: Mapping[Backend, BackendError]) -> Lease:
        """A place when it is the request's turn; one that a backend has failed goes before all others."""
        queue = self._dispatcher.queue
        lane = self._placement.lane(wanted)
        waiter = QueuedRequest(
            lane=(lane, *failed) if failed else lane,  # it cannot go where the others can
            sender=self._standing.sender(exchange),
            tokens=self._standing.tokens(exchange, wanted.prompt),
            priority=self._standing.priority(exchange) if not failed else FIRST,
            try_lease=partial(self._dispatcher.try_lease, wanted, tuple(failed)),
            queue=queue,
        )
        async with self._updates.during(exchange, waiter, wanted.prompt):
            return await queue.wait(waiter)

    # --- an attempt

    async def _send_and_learn(self, exchange: Exchange, lease: Lease, failed: Mapping[Backend, BackendError]) -> None:
        """As :meth:`_send`, and let a policy learn from it, and whoever comes after it where to go."""
        bond, backend = exchange.wanted.affinity, lease.backend
        listening = None if lease.tracker is None else ListeningTail(lease.tracker)
        exchange.tail = listening
        if bond is not None:
            exchange.tail = AffinityTail(self._bonds, exchange, bond, backend, listening)
            if bond.stream is not None:
                self._bonds.note(bond.stream, backend)
        is_complete = False
        try:
            await self._send(exchange, backend, failed)
            is_complete = True
        finally:
            if listening is not None and exchange.status < 400:  # what was refused was neither read nor answered
                listening.end(is_complete=is_complete)

    async def _send(self, exchange: Exchange, backend: Backend, failed: Mapping[Backend, BackendError]) -> None:
        connections = backend.connections
        sink = LateReply(exchange) if exchange.is_only_told else exchange
        connection = connections.take_idle() or await connections.connect()
        while True:
            try:
                held = await self._request(connection, exchange, backend, sink)
                if held is not None:
                    self._decide(exchange, backend, failed, held)
                    await connection.accept()
                break
            except BackendBroke as error:
                if self._next_attempt(exchange, error) is not NextAttempt.SAME_ON_FRESH_CONNECTION:
                    raise
                self._metrics.count_retry(error.code)
            finally:
                connections.give_back(connection)
            try:
                connection = await connections.connect()
            except BackendUnreachable:
                exchange.losses += 1  # it is not there any more: perhaps it died of the request
                raise
        if sink.status >= 500 or backend.health.is_doubtful:
            self._judge(backend, sink.status, connection.sent_at)

    def _request(
        self, connection: BackendConnection, exchange: Exchange, backend: Backend, sink: Exchange | LateReply
    ) -> Completion[HeldReply | None]:
        head = exchange.head
        origin = backend.connections.origin
        exchange.backend = backend.url
        if self._names_backend:
            exchange.extra_fields = exchange.limit_fields + backend.reply_field
        credentials = backend.credentials
        if credentials is None:
            credentials = head.credentials if self._keeps_credentials else b""
        section = head.for_backend(
            origin.authority,
            origin.prefix,
            exchange.request_id,
            len(exchange.body),
            credentials=credentials,
            close=not backend.connections.keeps_alive,
        )
        bond = exchange.wanted.affinity
        held_statuses = DECLINABLE_STATUSES if bond is None else bond.held_statuses
        return connection.request(
            [section, exchange.body], sink, is_head=head.method == "HEAD", held_statuses=held_statuses
        )

    def _decide(
        self, exchange: Exchange, backend: Backend, failed: Mapping[Backend, BackendError], held: HeldReply
    ) -> None:
        """Raises a :class:`BackendError` if another backend should try, so that the held reply goes nowhere."""
        wanted = exchange.wanted
        if wanted.affinity is not None and wanted.affinity.is_unlocated:
            if len(failed) + 1 < _ASKED and self._placement.has_other(wanted, [*failed, backend]):
                raise BackendLacks("The backend does not have what the request names.")
            return
        pause = _RETRY_AFTER.search(held.fields)
        if pause is not None:
            self._fleet.report_request_to_wait(backend, int(pause[1]))
        declined = BackendDeclined(held.status)
        if (
            self._next_attempt(exchange, declined) is not NextAttempt.NONE
            and self._placement.has_other(wanted, [*failed, backend])
            and self._budget.take(self._dispatcher.requests_in_flight)
        ):
            raise declined

    def _next_attempt(self, exchange: Exchange, error: BackendError, connect_timeouts: int = 0) -> NextAttempt:
        return next_attempt(
            error,
            method=exchange.head.method,
            path=exchange.head.path,
            reply_begun=exchange.begun and not exchange.is_only_told,
            losses=exchange.losses,
            connect_timeouts=connect_timeouts,
        )

    # --- evidence

    def _report(self, backend: Backend, error: BackendError) -> None:
        """Let everyone know at once what a failed attempt says about the backend."""
        fleet = self._fleet
        if isinstance(error, BackendUnreachable):
            fleet.report_refused_connection(backend)
        elif isinstance(error, BackendBroke):
            if not error.on_reused_connection:
                fleet.report_broken_connection(backend)
        elif isinstance(error, BackendTimeout):
            fleet.report_timeout(backend)
        elif isinstance(error, InvalidReply):
            fleet.report_failure(backend, "it does not answer in HTTP")
        elif isinstance(error, BackendDeclined):
            self._judge(backend, error.backend_status, 0.0)

    def _judge(self, backend: Backend, status: int, sent_at: float) -> None:
        if status in _FAILURE_STATUSES:
            self._fleet.report_failure(backend, f"it answered {status}")
        elif status < 400:
            self._fleet.report_success(backend, sent_at)


def _with_prompt(exchange: Exchange, bond: Affinity | None, placement: Placement) -> Requirements:
    """What ``exchange`` asks for; its prompt is read if a policy looks at it, or if it may not fit everywhere."""
    head = exchange.head
    if exchange.model is None and placement.has_policies_by_model:
        exchange.model = requested_model(head.target, exchange.body)
    policy = placement.policy(exchange.model)
    if not policy.reads_prompts and not placement.contexts_differ:
        return Requirements(exchange.model, affinity=bond)
    prompt = read_prompt(head.target, head.path, head.passed_on, exchange.body, placement.router.token_sizes)
    exchange.model = exchange.model or prompt.model
    return Requirements(exchange.model, prompt=prompt, policy=policy, affinity=bond)


def _raise_broken(failed: Mapping[Backend, BackendError]) -> None:
    for error in failed.values():
        if isinstance(error, BackendBroke):
            raise error from None


async def _back_off(failed: Mapping[Backend, BackendError]) -> None:
    """Wait a moment if the last attempt was declined: who declines is one of many that have too much to do."""
    *_, last = failed.values()
    if isinstance(last, BackendDeclined):
        await asyncio.sleep(random.uniform(0, _BACK_OFF_SECONDS))
