"""The ports of the proxy, and the sockets that listen on them: opened here, or inherited."""

from __future__ import annotations

import errno
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any

from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.config.sources import SettingsError
from inference_engine_proxy_server.processes.inherited_sockets import InheritedSockets

__all__ = ["ACCEPT_BACKLOG", "Port", "announce", "listen", "open_ports", "url_of"]

ACCEPT_BACKLOG = 4096  # connections that may wait to be accepted; the kernel caps the number at its own limit
CLIENT_SOCKETS = 8 if sys.platform == "linux" else 1
"""Sockets of a worker on PORT. In each turn, the event loop accepts one connection from each (libuv since 1.45), and a
turn with a thousand busy streams takes 20 ms: with one socket, the last of 64 new clients waited for a second.
https://github.com/libuv/libuv/pull/3696"""

logger = logging.getLogger(__name__)


def listen(name: str, host: str, port: int) -> socket.socket:
    """A listening socket.

    Args:
        name: the setting that ``port`` comes from.
        host: the address to listen on.
        port: the port to listen on.

    Raises:
        SettingsError: ``host`` is not an address of this machine.
        OSError: the port is not available; the message names the settings.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return _listener(address[:2], family)
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            advice = "0.0.0.0 means all of its addresses"
            raise SettingsError([f"HOST is {host!r}: this machine has no such address ({advice})"]) from error
        # Python repeats the address in the error's own text.
        reason = os.strerror(error.errno) if error.errno else error
        raise OSError(f"cannot listen on HOST {host}, {name} {port}: {reason}") from error


def _listener(address: tuple[Any, ...], family: int, *, is_shared: bool = False) -> socket.socket:
    """A listening socket; at ``::``, every IPv6 address, it accepts IPv4 connections, too."""
    is_dual = family == socket.AF_INET6 and address[0] == "::" and socket.has_dualstack_ipv6()
    return socket.create_server(
        address, family=family, backlog=ACCEPT_BACKLOG, reuse_port=is_shared, dualstack_ipv6=is_dual
    )


class Port:
    """One port, for one or several workers.

    Each worker has sockets of its own, over which the kernel distributes connections (``SO_REUSEPORT``). Sockets that a
    service manager opened are few and belong to another user, so no more can be added: every worker accepts connections
    from all of them.

    Args:
        name: the setting that it comes from.
        sockets: listen on it; at least one.
        is_own: they were opened by this program, or by the one that it replaces.
        workers: the number of workers; 1 for a single process.
        sockets_each: how many sockets each worker gets at least, if they are its own.

    Attributes:
        address: host and port.
    """

    def __init__(
        self, name: str, sockets: Sequence[socket.socket], *, is_own: bool, workers: int, sockets_each: int = 1
    ) -> None:
        self.name = name
        self.is_own = is_own
        self.address: tuple[str, int] = sockets[0].getsockname()[:2]
        self._family = sockets[0].family
        self._sockets_each = sockets_each
        self._all = list(sockets)
        self._given = {worker: list(sockets[worker::workers]) for worker in range(workers)}
        if is_own and workers * sockets_each > 1:
            for one in sockets:  # other sockets may share the port from now on
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)

    def listeners(self, worker: int) -> tuple[socket.socket, ...]:
        """The open sockets from which ``worker`` accepts connections. Raises ``OSError``."""
        if not self.is_own:
            return tuple(self._all)
        given = [one for one in self._given.get(worker, ()) if one.fileno() >= 0]
        more = self._sockets_each - len(given)
        if more > 0:  # at the first call, and after this worker's have been closed
            opened = [_listener(self.address, self._family, is_shared=True) for _ in range(more)]
            given += opened
            self._all = [*self.open_sockets, *opened]
            self._given[worker] = given
        return tuple(given)

    @property
    def open_sockets(self) -> list[socket.socket]:
        """All that listen."""
        return [one for one in self._all if one.fileno() >= 0]

    def close(self, listeners: Sequence[socket.socket]) -> None:
        """Close sockets of a worker, so that no connection waits for it; other workers may need inherited ones."""
        if self.is_own:
            for listener in listeners:
                listener.close()


def open_ports(settings: Settings, inherited: InheritedSockets | None = None) -> list[Port]:
    """PORT and, if set, ADMIN_PORT, on inherited sockets as far as there are any.

    Raises:
        SettingsError: HOST is not an address of this machine, or the sockets do not match the settings.
        OSError: a port is not available.
    """
    inherited = inherited or InheritedSockets(())
    if inherited.operators and settings.admin_port is None and "ADMIN_PORT" not in inherited.own:
        raise SettingsError(
            ["socket activation: there is a socket for operators (FileDescriptorName=admin), but ADMIN_PORT is not set"]
        )
    ports = []
    for name, number, given, sockets_each in (
        ("PORT", settings.port, inherited.clients, CLIENT_SOCKETS),
        ("ADMIN_PORT", settings.admin_port, inherited.operators, 1),
    ):
        if number is not None:
            is_own = not given or name in inherited.own
            sockets = given or (listen(name, settings.host, number),)
            ports.append(Port(name, sockets, is_own=is_own, workers=settings.workers, sockets_each=sockets_each))
            if given:
                _report(ports[-1], number)
    return ports


def _report(port: Port, number: int) -> None:
    host, given = port.address
    if not port.is_own:
        logger.info(
            "%s: a service manager has opened %s, port %d; HOST and %s are ignored", port.name, host, given, port.name
        )
    elif number not in (0, given):
        logger.warning("%s is %d now, but an upgrade keeps port %d; restart to change it", port.name, number, given)


def announce(url: str, operators_url: str | None, on_started: Callable[[str], None] | None) -> None:
    """Report the URLs that the server listens on: log them, and call ``on_started`` with ``url``."""
    if operators_url is not None:
        logger.info("listening on %s for operators", operators_url)
    logger.info("listening on %s", url)
    if on_started is not None:
        on_started(url)


def url_of(address: Sequence[Any], *, is_tls: bool) -> str:
    """The base URL of a server that listens at ``address`` (host, port, ...)."""
    host, port = address[:2]
    scheme = "https" if is_tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
