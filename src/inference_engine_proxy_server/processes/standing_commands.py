"""Commands that stay in force, for processes that start later: drained backends, and the roster."""

from __future__ import annotations

import json

from inference_engine_proxy_server.processes.channel import DRAIN, MOVE, ROSTER, UNDRAIN
from inference_engine_proxy_server.processes.roster import Roster

__all__ = ["StandingCommands"]


class StandingCommands:
    """The commands that the processes of one program have carried out, as far as they are in force.

    Args:
        roster: the backends that joined; ``None`` for an empty one.

    Attributes:
        drained_urls: base URLs of the backends that operators have drained.
    """

    def __init__(self, roster: Roster | None = None) -> None:
        self.roster = roster or Roster()
        self.drained_urls: set[str] = set()

    def carry_out(self, word: str, argument: str) -> str:
        """Note a command; returns its argument for other processes."""
        if word in (DRAIN, MOVE):
            self.drained_urls.add(argument)
        elif word == UNDRAIN:
            self.drained_urls.discard(argument)
        elif word == ROSTER:
            return self.roster.carry_out(argument)
        return argument

    def forget(self, url: str) -> None:
        """Forget a backend that has left: if it joins again, it is not drained."""
        self.drained_urls.discard(url)

    def as_json(self) -> str:
        """All of them, for a program that replaces this one."""
        return json.dumps({"drained_urls": sorted(self.drained_urls), "roster": self.roster.as_object()})

    def adopt(self, text: str) -> None:
        """Adopt those of the program that this one replaces."""
        content = json.loads(text)
        self.drained_urls = set(content["drained_urls"])
        self.roster.adopt(content["roster"])
