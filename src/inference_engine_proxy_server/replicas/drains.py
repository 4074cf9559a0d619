"""Operators' drains and undrains apply to all replicas, also to those that start later or were cut off meanwhile.

The last command counts. A drain ends with an undrain, or once the backend has left the fleet of every replica.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.fleet import Fleet, FleetObserver
from inference_engine_proxy_server.state.records import Record, Records

__all__ = ["DRAIN", "CarryOut", "DrainsOfReplicas", "SharedDrains"]

DRAIN = "drain "
"""With this, the name of a record about a drain begins."""


class CarryOut(Protocol):
    """Carries out a command in all processes of this replica."""

    def __call__(self, url: str, *, is_draining: bool, moves: bool) -> None:
        """Take the backend ``url`` out of rotation, or put it back; also if it joins the fleet later."""


class SharedDrains:
    """Tells the other replicas of the commands that this process received."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def command(self, url: str, *, is_draining: bool, moves: bool) -> None:
        """An operator has drained or undrained the backend ``url``."""
        self._records.write(DRAIN + url, {"drained": is_draining, "moves": moves})


class DrainsOfReplicas(FleetObserver):
    """Lets this replica carry out the commands that others received. One process of the replica needs it.

    Args:
        records: the records of all replicas.
        fleet: the backends.
        carry_out: for each command.
    """

    def __init__(self, records: Records, fleet: Fleet, carry_out: CarryOut) -> None:
        self._records = records
        self._fleet = fleet
        self._carry_out = carry_out
        self._urls = {backend.url for backend in fleet.backends}
        records.subscribe(self._on_change)
        fleet.subscribe(self)

    def look(self) -> None:
        """Say which drains are still needed. Call it every second or so."""
        for backend in self._fleet.backends:
            if backend.is_draining:
                self._records.need(DRAIN + backend.url)

    def on_replaced(self, backends: Sequence[Backend]) -> None:
        """See :class:`FleetObserver`. Another engine may get the address of one that has left."""
        before, self._urls = self._urls, {backend.url for backend in backends}
        for url in before - self._urls:
            record = self._records.get(DRAIN + url)
            if record is not None and record.value is not None:
                self._records.write(DRAIN + url, None)

    def _on_change(self, name: str, record: Record) -> None:
        if not name.startswith(DRAIN):
            return
        url = name.removeprefix(DRAIN)
        if isinstance(record.value, dict):
            is_draining = record.value.get("drained") is True
            self._carry_out(url, is_draining=is_draining, moves=is_draining and record.value.get("moves") is True)
        elif any(backend.is_draining for backend in self._fleet.backends if backend.url == url):
            # It has left the fleet of another replica, but is still in this one.
            self._records.write(name, {"drained": True, "moves": False})
