"""The requests that are in progress, found where they are: on the connections of clients, and in the queue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import zip_longest
from typing import Literal

import msgspec

from inference_engine_proxy_server.dashboard.traffic import Progress
from inference_engine_proxy_server.dispatch.leases import Lease
from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.dispatch.request_queue import RequestQueue
from inference_engine_proxy_server.errors import RequestCancelled
from inference_engine_proxy_server.requests.destinations import ANSWERED_HERE
from inference_engine_proxy_server.routing.decisions import Decision
from inference_engine_proxy_server.wire.client_connection import ClientConnection
from inference_engine_proxy_server.wire.load import Load

__all__ = ["MOST_SHOWN", "LiveRequest", "LiveRequests", "RequestsPart", "longest"]

MOST_SHOWN = 500
"""Requests that are shown."""

_MOST_NAME = 200  # characters of a name that a client chose
_HEAD_BYTES = 400  # about the header section of a stream
_DATA = b"data:"

Phase = Literal["queued", "prefill", "decode", "resumed"]


class LiveRequest(msgspec.Struct, gc=False):
    """One request in progress.

    Attributes:
        id: the value of ``x-request-id``, which a client may have chosen.
        model: that it names; ``None`` if that is not known. alias: the client's name for it, if that is another one.
        key: name of its API key; ``None`` without one.
        path: without the query.
        backend: base URL of the backend that has it; ``None`` before.
        why: why that backend was chosen, in a few words; ``None`` before.
        shadow: base URL of the backend that a shadow policy would have chosen, if it is another one.
        phase: ``queued``: it waits for a backend; ``prefill``: it waits for the first byte of its reply, or the first
            event of a stream; ``decode``: its reply has begun; ``resumed``: so it has, on another backend.
        tokens: of its answer so far, estimated by the events of the stream; ``None`` if it is no stream.
        tokens_per_second: of its answer since that began; ``None`` likewise.
        age: seconds since the request was complete.
        position: in its lane of the queue, from 1; ``None`` if it does not wait there.
        expected_wait: seconds until it leaves the queue, at the recent rate; ``None`` if that is not known.
        resumes: how often its stream was continued on another backend.
        worker: number of the worker that has it.
    """

    id: str
    model: str | None
    alias: str | None
    key: str | None
    path: str
    backend: str | None
    why: str | None
    shadow: str | None
    phase: Phase
    tokens: int | None
    tokens_per_second: float | None
    age: float
    position: int | None
    expected_wait: float | None
    resumes: int
    worker: int


class RequestsPart(msgspec.Struct, gc=False):
    """The live requests of one worker.

    Attributes:
        total: how many there are.
        shown: the longest in each phase.
        waiting_by_key: requests that wait, by the name of their key; empty for those without one.
        expected_wait: seconds until the last one leaves the queue; ``None`` if that is not known, or none waits.
    """

    total: int = 0
    shown: list[LiveRequest] = []
    waiting_by_key: dict[str, int] = {}
    expected_wait: float | None = None


class LiveRequests:
    """Finds the requests of this process.

    Args:
        load: has the connections of clients.
        queue: the requests that wait.
        clock: the clock of the connections.
        worker: number of this worker.
    """

    def __init__(self, load: Load, queue: RequestQueue[Lease], clock: Callable[[], float], worker: int) -> None:
        self._load = load
        self._queue = queue
        self._clock = clock
        self._worker = worker

    def part(self, *, with_rows: bool) -> RequestsPart:
        """The requests that are in progress now; ``with_rows``: each is shown."""
        positions = {id(waiting.owner): position for waiting, position in self._queue.waiting()}
        found = [request for _, request in self._connections()]
        by_phase: dict[Phase, list[ProxiedRequest]] = {}
        for request in sorted(found, key=_started_at):
            by_phase.setdefault(_phase_of(request, is_queued=id(request) in positions), []).append(request)
        now = self._clock()
        shown = [
            self._row(request, phase, positions.get(id(request)), now)
            for phase, requests in by_phase.items()
            for request in requests[: MOST_SHOWN if with_rows else 0]
        ]
        waiting = Counter(_key_of(request) or "" for request in by_phase.get("queued", ()))
        wait = self._queue.seconds_for(self._queue.count) if self._queue.count else None
        return RequestsPart(len(found), longest(shown), dict(waiting), _rounded(wait))

    def progress(self) -> Iterator[Progress]:
        """The tokens of each stream so far."""
        for _, request in self._connections():
            tokens = _tokens_of(request) if request.begun else None
            if tokens:
                yield Progress(request.request_id, request.backend, tokens)

    def cancel(self, request_id: str) -> int:
        """End the requests with this id; each client gets an error. Returns how many there are."""
        chosen = [connection for connection, request in self._connections() if request.request_id == request_id]
        for connection in chosen:
            connection.cancel(RequestCancelled("An operator has cancelled the request."))
        return len(chosen)

    def _connections(self) -> Iterator[tuple[ClientConnection[ProxiedRequest], ProxiedRequest]]:
        for connection in self._load.connections:
            if isinstance(connection, ClientConnection):
                request = connection.exchange
                if request is not None and request.head.destination not in ANSWERED_HERE:
                    yield connection, request

    def _row(self, request: ProxiedRequest, phase: Phase, position: int | None, now: float) -> LiveRequest:
        is_placed = phase != "queued"
        tokens = _tokens_of(request) if phase in ("decode", "resumed") else None
        seconds = now - (request.started_at if request.first_byte_at is None else request.first_byte_at)
        decision: Decision | None = getattr(request, "decision", None)
        return LiveRequest(
            id=request.request_id,
            model=_shortened(request.model),
            alias=_shortened(request.alias),
            key=_key_of(request),
            path=request.head.path[:_MOST_NAME],
            backend=request.backend if is_placed else None,
            why=decision.reason if is_placed and decision is not None else None,
            shadow=_shadow_of(decision) if is_placed else None,
            phase=phase,
            tokens=tokens,
            tokens_per_second=round(tokens / seconds, 1) if tokens and seconds > 0 else None,
            age=round(now - request.started_at, 2),
            position=position,
            expected_wait=None if position is None else _rounded(self._queue.seconds_for(position)),
            resumes=request.resumes,
            worker=self._worker,
        )


def longest(requests: Iterable[LiveRequest]) -> list[LiveRequest]:
    """The longest of ``requests``, as many of each phase as possible: at most ``MOST_SHOWN``, the longest first."""
    by_phase: dict[Phase, list[LiveRequest]] = {}
    for request in sorted(requests, key=lambda one: -one.age):
        by_phase.setdefault(request.phase, []).append(request)
    in_turn = (one for turn in zip_longest(*by_phase.values()) for one in turn if one is not None)
    chosen = [request for request, _ in zip(in_turn, range(MOST_SHOWN), strict=False)]
    return sorted(chosen, key=lambda one: -one.age)


def _started_at(request: ProxiedRequest) -> float:
    return request.started_at


def _phase_of(request: ProxiedRequest, *, is_queued: bool) -> Phase:
    if is_queued:
        return "queued"
    has_begun = request.sink.has_delivered if request.sink is not None else not request.awaits_reply
    if not has_begun:
        return "prefill"
    return "resumed" if request.resumes else "decode"


def _tokens_of(request: ProxiedRequest) -> int | None:
    """About the tokens of the answer so far; ``None`` if the reply is no stream of events."""
    if request.sink is not None:
        return request.sink.transcript.events
    events = request.last_block.count(_DATA)
    if not events:
        return None
    return max(1, round((request.sent_bytes - _HEAD_BYTES) * events / len(request.last_block)))


def _shadow_of(decision: Decision | None) -> str | None:
    shadow: Decision | None = getattr(decision, "shadow", None)
    if decision is None or shadow is None or shadow.chosen.config.url == decision.chosen.config.url:
        return None
    return shadow.chosen.config.url


def _key_of(request: ProxiedRequest) -> str | None:
    return None if request.access is None else request.access.key.name


def _shortened(name: str | None) -> str | None:
    return name and name[:_MOST_NAME]


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)
