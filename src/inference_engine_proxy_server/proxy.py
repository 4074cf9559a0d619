"""One proxy as its host sees it: a handler for connections, an application, and messages from outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI

from inference_engine_proxy_server.dashboard.feed import Feed
from inference_engine_proxy_server.discovery.config_watch import ConfigWatch
from inference_engine_proxy_server.dispatch.proxied_request import ProxiedRequest
from inference_engine_proxy_server.fleet.membership import Membership
from inference_engine_proxy_server.overload.overload_guard import OverloadGuard
from inference_engine_proxy_server.processes.readiness import Readiness
from inference_engine_proxy_server.wire.client_connection import ClientConnection
from inference_engine_proxy_server.wire.client_context import ClientContext

__all__ = ["Proxy"]


@dataclass(frozen=True, slots=True)
class Proxy:
    """The parts of a proxy that its host uses; see :class:`~.host.Hosted`.

    Attributes:
        app: answers the proxy's own paths. Its lifespan runs all background tasks.
        clients: serves connections on PORT.
        operators: serves connections on ADMIN_PORT.
        membership: carries out operators' drains.
        guard: sheds requests.
        readiness: of this process.
        config_watch: applies changes of the configuration; ``None`` when it never changes.
        feed: of the dashboard, whose viewers never leave on their own.
        linger_seconds: how long idle connections may stay open after another program has taken over the port.
    """

    app: FastAPI
    clients: ClientContext[ProxiedRequest]
    operators: ClientContext[ProxiedRequest]
    membership: Membership
    guard: OverloadGuard
    readiness: Readiness
    config_watch: ConfigWatch | None
    feed: Feed
    linger_seconds: float

    def accept(self, server_state: Any, **_: object) -> ClientConnection[ProxiedRequest]:
        """A protocol for a connection that uvicorn has accepted on PORT."""
        return ClientConnection(self.clients, server_state.connections, server_state.tasks)

    def accept_operator(self, server_state: Any) -> ClientConnection[ProxiedRequest]:
        """A protocol for a connection on ADMIN_PORT."""
        return ClientConnection(self.operators, server_state.connections, server_state.tasks)

    def begin_shutdown(self, *, may_linger: bool) -> float:
        """Report from now on that this process will stop; returns for how many seconds it still accepts."""
        self.guard.begin_shutdown()
        return self.readiness.begin_shutdown(may_linger=may_linger)

    def hand_over(self) -> float:
        """Close each connection after its next reply: another program serves the port. It is ready, and so is this.

        Returns:
            The number of seconds after which idle connections have ended.
        """
        self.guard.begin_shutdown()
        self.operators.load.ends_connections = True
        return self.linger_seconds

    def end_feeds(self) -> None:
        """End the replies that would never end on their own: the process waits for the end of all replies now."""
        self.feed.close()

    def reload(self) -> None:
        """Read the configuration again, if it can change."""
        if self.config_watch is not None:
            self.config_watch.reload()

    def obey(self, url: str, *, is_draining: bool, moves: bool) -> None:
        """Drain or undrain the backend ``url`` by an operator's command, and move its requests if it says so."""
        self.membership.obey(url, is_draining=is_draining, moves=moves)

    def record_readiness_probe(self) -> None:
        """Record a readiness probe of another worker."""
        self.readiness.record_probe()
