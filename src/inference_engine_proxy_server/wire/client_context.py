"""What all client connections share: limits, deadlines, and the functions that serve their requests."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from inference_engine_proxy_server.tasks.deadlines import Deadlines
from inference_engine_proxy_server.wire.client_side import ClientSide
from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.forwarding import Forwarding
from inference_engine_proxy_server.wire.load import Load
from inference_engine_proxy_server.wire.request_head import HeadLimits, RequestHead

__all__ = ["ClientContext", "ClientLimits", "E"]

E = TypeVar("E", bound=Exchange)


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """Limits for one client connection; times in seconds.

    Attributes:
        head: limits of a request's header section.
        body_bytes: longest request body.
        header_seconds: longest time from a request's first byte to the end of its header section.
        body_seconds: longest pause between two reads of a request body.
        body_total_seconds: longest time for a whole request body.
        request_seconds: longest time from a complete request to the end of its reply; ``NEVER`` for no limit.
        keep_alive_seconds: how long a connection may wait for its next request.
        write_stall_seconds: how long a slow client may read almost nothing.
    """

    head: HeadLimits
    body_bytes: int
    header_seconds: float
    body_seconds: float
    body_total_seconds: float
    request_seconds: float
    keep_alive_seconds: float
    write_stall_seconds: float


@dataclass(frozen=True, slots=True)
class ClientContext(Generic[E]):
    """What all client connections share. All decisions about requests are made by these functions.

    Attributes:
        limits: of each connection.
        deadlines: watches the connections.
        load: the resources that all connections use.
        forwarding: the forwarding headers that backends receive.
        request_ids: new ids, for requests without one.
        new_exchange: makes an exchange of a connection, a head, a body, a request id and a client address.
        classify: computes the destination of a request, once per header section.
        shed: rejects a request, or a connection before its first request (``None``), because of the named limit. Raises
            ``CapacityError``, unless the request must be served nevertheless.
        admit: checks each header section before the body is read; its result becomes the head's ``access``. Raises
            ``ClientError`` to reject the request.
        heartbeat_seconds: how long a client waits for a reply until ``send_heartbeat`` is called; ``NEVER`` for never.
        send_heartbeat: sends a comment if the client waits for a stream; called again after each interval.
        handle: serves one exchange, run by a :class:`~.light_task.LightTask` and cancelled when the client disconnects.
            May raise a ``ProxyError`` itself.
        observe: called once for each exchange that has ended, however it ended.
    """

    limits: ClientLimits
    deadlines: Deadlines
    load: Load
    forwarding: Forwarding
    request_ids: Iterator[str]
    new_exchange: Callable[[ClientSide, RequestHead, bytes, str, str], E]
    classify: Callable[[RequestHead], object]
    shed: Callable[[str, RequestHead | None], None]
    admit: Callable[[RequestHead], object]
    heartbeat_seconds: float
    send_heartbeat: Callable[[E], None]
    handle: Callable[[E], Coroutine[None, None, None]]
    observe: Callable[[E], None]
