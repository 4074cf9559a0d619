"""This project's own code on the virtual clock: its pool, its backends with their health, and its request queue.

Left out are only the layers around it: connections, and the polls that produce a ``BackendState``.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from inference_engine_proxy_server.backends.base import BackendState, ModelNames
from inference_engine_proxy_server.backends.reply_facts import ReplyFacts
from inference_engine_proxy_server.backends.seen_capacity import SeenCapacity
from inference_engine_proxy_server.composition.dispatch import build_dispatcher, build_placement
from inference_engine_proxy_server.composition.fleet import build_backend_factory, build_fleet, thresholds_of
from inference_engine_proxy_server.config.configuration import Configuration
from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.dispatch.leases import Lease
from inference_engine_proxy_server.dispatch.request_queue import QueuedRequest
from inference_engine_proxy_server.models.catalog import EMPTY
from inference_engine_proxy_server.models.live_catalog import LiveCatalog
from inference_engine_proxy_server.processes.process_context import SoleProcess
from inference_engine_proxy_server.requests.content import read_content
from inference_engine_proxy_server.requests.prompt import read_prompt
from inference_engine_proxy_server.requests.turns import turn_of
from inference_engine_proxy_server.routing.requirements import Requirements
from inference_engine_proxy_server.tasks.deadlines import Deadlines
from simulation.batching import EngineState, Usage
from simulation.policies.base import Policy, ReplicaView, Site
from simulation.requests import BYTES_A_TOKEN, MODEL, Request

__all__ = ["ProjectPolicy"]

_USUAL_ANSWER_TOKENS = 256  # as in dispatch/fair_share.py
_ALL_THAT_COME = {"max_queued_requests": 100_000, "queue_timeout_seconds": 86_400}
"""No request is rejected, because the other proxies let requests wait in the engines without limit."""


class ProjectPolicy(Policy):
    """This project with ``settings``, otherwise defaults."""

    def __init__(self, site: Site, settings: dict[str, Any]) -> None:
        super().__init__(site)
        urls = tuple(f"http://backend-{number}:8000" for number in range(len(site.view.is_up)))
        polls = {"metrics_cache_ttl_seconds": site.poll_seconds}
        self._settings = Settings(backends=urls, **(_ALL_THAT_COME | polls | settings))
        deadlines = Deadlines(clock=site.loop.time)
        configuration, process = Configuration.of(self._settings), SoleProcess()
        make_backend = build_backend_factory(self._settings, deadlines, process)
        self._fleet = build_fleet(configuration, make_backend, deadlines)
        self._backends = self._fleet.backends
        self._placement = build_placement(configuration, self._fleet, process, LiveCatalog(EMPTY))
        self._dispatcher = build_dispatcher(self._settings, self._fleet, self._placement, deadlines, process)
        self._numbers = {backend: number for number, backend in enumerate(self._backends)}
        self._leases: dict[int, Lease] = {}
        self._waits: set[asyncio.Task[None]] = set()
        self._thresholds = thresholds_of(self._settings)
        self._seen_capacities = [SeenCapacity() for _ in urls]

    def choose(self, request: Request, view: ReplicaView, now: float) -> int | None:  # noqa: ARG002
        wanted = self._wanted(request)
        lease = self._dispatcher.lease(wanted)
        if lease is None:
            self._waits.add(task := self.site.loop.create_task(self._wait(request, wanted)))
            task.add_done_callback(self._waits.discard)
            return None
        return self._take(request, lease)

    def refused(self, request: Request, backend: int, now: float) -> None:  # noqa: ARG002
        self._fleet.report_refused_connection(self._backends[backend])
        self._leases.pop(request.number).close()

    def lost(self, request: Request, backend: int, now: float) -> None:  # noqa: ARG002
        self._leases.pop(request.number).close()
        self._fleet.report_refused_connection(self._backends[backend])

    def first_token(self, request: Request, backend: int, now: float) -> None:  # noqa: ARG002
        tracker = self._leases[request.number].tracker
        if tracker is not None:
            tracker.begin()

    def done(self, request: Request, backend: int, usage: Usage, now: float) -> None:  # noqa: ARG002
        lease = self._leases.pop(request.number)
        if lease.tracker is not None:
            lease.tracker.complete(self._as_facts(usage))
        lease.close()

    def polled(self, backend: int, state: EngineState | None, own: int, asked_at: float, now: float) -> None:  # noqa: ARG002
        if state is None:
            self._fleet.report_refusal(self._backends[backend])
        else:
            reported = self._as_reported(backend, state)
            self._fleet.publish(self._backends[backend], reported, own_at_poll=own, asked_at=asked_at)

    async def _wait(self, request: Request, wanted: Requirements) -> None:
        answer_tokens = _USUAL_ANSWER_TOKENS if request.max_tokens is None else request.max_tokens
        waiter = QueuedRequest(
            lane=self._placement.lane(wanted),
            sender=request.sender,
            tokens=1 + request.body_bytes / BYTES_A_TOKEN + answer_tokens,
            priority=0,
            try_lease=partial(self._dispatcher.try_lease, wanted),
            queue=self._dispatcher.queue,
        )
        self.site.most_waiting = max(self.site.most_waiting, self._dispatcher.queue.count + 1)
        lease = await self._dispatcher.queue.wait(waiter)
        self.site.send(request, self._take(request, lease))

    def _take(self, request: Request, lease: Lease) -> int:
        self._leases[request.number] = lease
        return self._numbers[lease.backend]

    def _wanted(self, request: Request) -> Requirements:
        """The requirements that the forwarder derives from the body."""
        policy, path, body = self._placement.policy(MODEL), "/v1/chat/completions", request.body()
        fields = f"x-session-id: {request.session}\r\n".encode() if request.session else b""
        if not policy.reads_prompts:
            key, turn = turn_of(MODEL, read_content(path.encode(), body, fields).raw_messages, fields)
            return Requirements(MODEL, turn_key=key, turn=turn)
        prompt = read_prompt(path.encode(), path, fields, body, self._placement.router.token_sizes)
        return Requirements(MODEL, prompt=prompt, policy=policy)

    def _as_facts(self, usage: Usage) -> ReplyFacts:
        """Usage, which both kinds of engines can report, and llama.cpp's ``timings``."""
        read_ms = usage.prompt_seconds * 1000 if self.site.engine != "vllm" else None
        return ReplyFacts(
            usage.prompt_tokens,
            usage.cached_tokens,
            usage.answer_tokens,
            None if read_ms is None else usage.prompt_tokens - usage.cached_tokens,
            read_ms,
        )

    def _as_reported(self, backend: int, state: EngineState) -> BackendState:
        """The state that backends/llamacpp.py and backends/vllm.py derive from an engine's replies."""
        most = self._thresholds
        if self.site.engine == "vllm":
            is_ready, capacity = True, self._seen_capacities[backend].look(state.processing, state.waiting)
        else:
            is_ready = state.processing <= most.requests_processing and state.waiting <= most.requests_waiting
            capacity = state.capacity
        return BackendState(
            ready=is_ready,
            reason="" if is_ready else "busy",
            requests_processing=state.processing,
            requests_waiting=state.waiting,
            capacity=capacity,
            context_use=state.context_use if self.site.engine == "vllm" else None,
            memory_tokens=state.memory_tokens,
            progress=state.tokens,
            model_names=ModelNames.ANY,
        )
