"""What all clients' connections share: their bounds, their clock, and who answers them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

from inference_engine_proxy_server.requests.destinations import Destination
from inference_engine_proxy_server.tasks.deadlines import Deadlines
from inference_engine_proxy_server.wire.exchange import Exchange
from inference_engine_proxy_server.wire.forwarding import Forwarding
from inference_engine_proxy_server.wire.load import Load
from inference_engine_proxy_server.wire.request_head import HeadLimits, RequestHead

__all__ = ["ClientContext", "ClientLimits"]


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """Bounds of what one client's connection may cost; times in seconds.

    Attributes:
        head: bounds of a request's header section.
        body_bytes: longest request body.
        header_seconds: from a request's first byte to the end of its header section, however it drips.
        body_seconds: between two reads of a request body.
        body_total_seconds: for a whole request body, however steadily it comes.
        request_seconds: from a whole request to the end of its reply; ``NEVER``: as long as it takes.
        keep_alive_seconds: how long a connection may wait for its next request.
        write_stall_seconds: how long a client that is behind may take next to nothing of its reply.
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
class ClientContext:
    """What all clients' connections share.

    Attributes:
        limits: bounds for each connection.
        deadlines: watches them.
        load: what they hold together.
        forwarding: what is told to backends about the way of a request.
        request_ids: new ones, for requests that bring none.
        destination_of: what becomes of a request, by its method, its path and the lines of its header section.
        shed: told which bound keeps a request out (``None``: a connection, before it asks for anything) and raises a
            ``CapacityError``, unless it is one that must be served all the same.
        admit: looks at each header section before the body is read, and raises a ``ClientError`` if it is not to be
            read; what it gives becomes the head's ``access``.
        handle: answers one exchange, run by a :class:`~.light_task.LightTask`; cancelled when the client leaves. May
            raise a ``ProxyError`` itself.
        observe: told of each exchange once, when it is over, however it ended.
    """

    limits: ClientLimits
    deadlines: Deadlines
    load: Load
    forwarding: Forwarding
    request_ids: Iterator[str]
    destination_of: Callable[[str, str, bytes], Destination]
    shed: Callable[[str, RequestHead | None], None]
    admit: Callable[[RequestHead], Any]
    handle: Callable[[Exchange], Coroutine[None, None, None]]
    observe: Callable[[Exchange], None]
