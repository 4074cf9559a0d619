"""The listening sockets that a service manager opened: socket activation, as in sd_listen_fds(3)."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from inference_engine_proxy_server.config.sources import SettingsError

__all__ = ["InheritedSockets", "adopted", "inherited_sockets"]

_FIRST = 3  # SD_LISTEN_FDS_START
_VARIABLES = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
_OPERATORS = "admin"


@dataclass(frozen=True, slots=True)
class InheritedSockets:
    """Sockets that listen already.

    Attributes:
        clients: on PORT.
        operators: on ADMIN_PORT.
        own: the settings of the ports that an earlier process of this program opened, and no service manager.
    """

    clients: tuple[socket.socket, ...]
    operators: tuple[socket.socket, ...] = ()
    own: frozenset[str] = frozenset()


def inherited_sockets(environ: MutableMapping[str, str], pid: int, first: int = _FIRST) -> InheritedSockets | None:
    """The sockets for the process ``pid``; ``None`` if there are none. The variables are removed, as they had effect.

    ``FileDescriptorName=admin`` marks those for ADMIN_PORT. All others are for PORT.

    Raises:
        SettingsError: they cannot be used.
    """
    variables = {name: environ.pop(name) for name in _VARIABLES if name in environ}
    if variables.get("LISTEN_PID") != str(pid) or "LISTEN_FDS" not in variables:
        return None
    names = _names(variables, first)
    if names and all(name == _OPERATORS for name in names.values()):
        raise SettingsError(
            ["socket activation: there is only a socket for ADMIN_PORT (FileDescriptorName=admin), and none for PORT"]
        )
    sockets = [(name, adopted(number, name)) for number, name in names.items()]
    clients = tuple(one for name, one in sockets if name != _OPERATORS)
    operators = tuple(one for name, one in sockets if name == _OPERATORS)
    return InheritedSockets(clients, operators) if clients else None


def _names(variables: Mapping[str, str], first: int) -> dict[int, str]:
    count = variables["LISTEN_FDS"]
    if not count.isdecimal():
        raise SettingsError([f"LISTEN_FDS is {count!r}: it must be the number of sockets that are passed on"])
    names = variables.get("LISTEN_FDNAMES", "").split(":")
    return {first + at: names[at] if at < len(names) else "" for at in range(int(count))}


def adopted(number: int, name: str = "") -> socket.socket:
    """The listening TCP socket with this file descriptor, which programs that this one starts do not inherit.

    Raises:
        SettingsError: it is something else.
    """
    what = f"socket activation: file descriptor {number}" + (f" ({name})" if name else "")
    try:
        if not stat.S_ISSOCK(os.fstat(number).st_mode):
            raise SettingsError([f"{what} is not a socket"])
    except OSError as error:
        raise SettingsError([f"{what}: {error.strerror}; nothing was passed on"]) from None
    one = socket.socket(fileno=number)
    problem = _problem(one)
    if problem:
        one.detach()  # it stays open, as it was
        raise SettingsError([f"{what} {problem}"])
    os.set_inheritable(number, False)
    return one


def _problem(one: socket.socket) -> str:
    """Why the proxy cannot accept connections from a socket; empty if it can."""
    if one.family not in (socket.AF_INET, socket.AF_INET6):
        return "is not a TCP socket: ListenStream= must be a port, or an IP address and a port"
    if one.type != socket.SOCK_STREAM:
        return "is not a TCP socket: use ListenStream=, not ListenDatagram="
    if not one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "does not listen: use Accept=no, which passes on the listening socket"
    return ""
