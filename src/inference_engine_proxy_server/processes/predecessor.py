"""The running program that this one replaces, seen from this one."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from inference_engine_proxy_server.config.sources import SettingsError
from inference_engine_proxy_server.processes.channel import Channel
from inference_engine_proxy_server.processes.inherited_sockets import InheritedSockets, adopted
from inference_engine_proxy_server.processes.standing_commands import StandingCommands

__all__ = ["TAKEOVER", "Handover", "Predecessor"]

TAKEOVER = "INFERENCE_PROXY_TAKEOVER"
"""The variable by which a running program tells its successor what it hands over."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Handover:
    """What a running program hands over, as file descriptors. Versions must understand each other: only add members.

    Attributes:
        channel: to the running program.
        commands: a file with :class:`StandingCommands`.
        sockets: that listen, by the setting of their port.
        own: the settings of the ports that it opened itself.
    """

    channel: int
    commands: int
    sockets: Mapping[str, Sequence[int]]
    own: Sequence[str]

    @property
    def descriptors(self) -> list[int]:
        """All of them."""
        return [self.channel, self.commands, *(one for some in self.sockets.values() for one in some)]

    def as_object(self) -> dict[str, object]:
        """As JSON has it."""
        return {"channel": self.channel, "commands": self.commands, "sockets": self.sockets, "own": self.own}

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Handover:
        """The handover that :meth:`as_object` describes. Raises ``KeyError``."""
        return cls(content["channel"], content["commands"], content["sockets"], content["own"])


@dataclass(frozen=True, slots=True)
class Predecessor:
    """The program that runs, and hands over when this one serves.

    Attributes:
        channel: to it.
        sockets: that it hands over.
        commands: of operators, as JSON.
    """

    channel: Channel
    sockets: InheritedSockets
    commands: str

    @classmethod
    def of(cls, environ: MutableMapping[str, str]) -> Predecessor | None:
        """The predecessor that ``environ`` names; ``None`` for a usual start. The variable is removed.

        Raises:
            SettingsError: what it handed over cannot be used.
        """
        text = environ.pop(TAKEOVER, None)
        if text is None:
            return None
        try:
            handover = Handover.of(json.loads(text))
            with os.fdopen(handover.commands, "rb") as file:
                file.seek(0)
                commands = file.read().decode()
            channel = Channel(socket.socket(fileno=handover.channel))
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise SettingsError([f"{TAKEOVER} is set by a running proxy only, and cannot be used: {error}"]) from None
        os.set_inheritable(handover.channel, False)
        clients = tuple(adopted(one) for one in handover.sockets["PORT"])
        operators = tuple(adopted(one) for one in handover.sockets.get("ADMIN_PORT", ()))
        return cls(channel, InheritedSockets(clients, operators, frozenset(handover.own)), commands)

    def adopt_commands(self, commands: StandingCommands) -> None:
        """Adopt the commands that are in force there; those that it cannot express are left out, and logged."""
        try:
            commands.adopt(self.commands)
        except (ValueError, KeyError, TypeError) as error:
            logger.error("upgrade: the drained and joined backends cannot be taken over: %r", error)
