"""The start of this program: its service manager, inherited sockets, and the program that it replaces, if any."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field

from inference_engine_proxy_server.processes.inherited_sockets import InheritedSockets, inherited_sockets
from inference_engine_proxy_server.processes.predecessor import Predecessor
from inference_engine_proxy_server.processes.service_manager import ServiceManager

__all__ = ["Launch"]


@dataclass(frozen=True, slots=True)
class Launch:
    """The start of this program.

    Attributes:
        manager: receives the state of the program.
        predecessor: the program that this one replaces, if any.
        inherited: sockets that listen already, if any.
        command: starts the installed version; empty if this program cannot be upgraded.
    """

    manager: ServiceManager = field(default_factory=ServiceManager)
    predecessor: Predecessor | None = None
    inherited: InheritedSockets | None = None
    command: Sequence[str] = ()

    @classmethod
    def of(cls, environ: MutableMapping[str, str], pid: int, command: Sequence[str]) -> Launch:
        """The start of the process ``pid``. Removes the variables that must not reach other programs.

        Raises:
            SettingsError: inherited sockets cannot be used.
        """
        predecessor = Predecessor.of(environ)
        inherited = inherited_sockets(environ, pid)
        if predecessor is not None:
            inherited = predecessor.sockets
        return cls(ServiceManager.of(environ, pid), predecessor, inherited, command)
