"""Carries out the commands by which backends join and leave while the proxy runs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

from inference_engine_proxy_server.backends.registry import Engines
from inference_engine_proxy_server.config.added_backends import (
    AnnouncedEntry,
    DescriptionError,
    JoiningEntry,
    as_written,
    described_backend,
)
from inference_engine_proxy_server.config.base_urls import server_of
from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.config.fleet_form import BackendEntry
from inference_engine_proxy_server.discovery.discovery import CONFIGURED, Discovery
from inference_engine_proxy_server.discovery.joined import ADDED, ANNOUNCED, ConfigOf
from inference_engine_proxy_server.endpoints.all_workers import AllWorkers, SiblingAnswers
from inference_engine_proxy_server.endpoints.backend_commands import find_backend
from inference_engine_proxy_server.errors import CapacityError, ClientError
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.departures import Departures
from inference_engine_proxy_server.fleet.fleet import Fleet
from inference_engine_proxy_server.fleet.fleet_updater import UnknownEngineError, check_engines
from inference_engine_proxy_server.processes.channel import LONGEST_BYTES
from inference_engine_proxy_server.processes.roster import Command, Roster

__all__ = ["FleetChanges", "Left"]

_Form = TypeVar("_Form", bound=BackendEntry)

_LOOK_SECONDS = 0.02  # interval of checks whether a command has been carried out, or the last request has ended
_COMMAND_SECONDS = 2.0  # for all workers that do not hang
_ROOM_BYTES = 1024  # in a message, for what the supervisor adds to a command


@dataclass(frozen=True, slots=True)
class Left:
    """A backend after a command to leave.

    Attributes:
        url: base URL.
        source: the source that still has it; ``None`` if it has left the fleet.
        requests: its requests of all workers and replicas.
        siblings: the other workers.
    """

    url: str
    source: str | None
    requests: int
    siblings: SiblingAnswers

    @property
    def is_safe_to_stop(self) -> bool:
        """Whether no worker has a request on it, or would send it one."""
        return self.source is None and not self.requests and self.siblings.agree_on(self.url, is_present=False)


class FleetChanges:
    """The commands.

    Args:
        fleet: the backends.
        discovery: knows which source has found which backend.
        departures: the backends that have left.
        workers: this worker and its siblings.
        roster: the backends that have joined.
        change_roster: sends a change of the roster to all workers.
        config_of: the configuration from an entry.
        engines: the known engines.
    """

    def __init__(
        self,
        fleet: Fleet,
        discovery: Discovery,
        departures: Departures,
        workers: AllWorkers,
        roster: Roster,
        change_roster: Callable[[Command], None],
        config_of: ConfigOf,
        engines: Engines,
    ) -> None:
        self.roster = roster
        self._fleet = fleet
        self._discovery = discovery
        self._departures = departures
        self._workers = workers
        self._change_roster = change_roster
        self._config_of = config_of
        self._engines = engines

    # --- backends that join

    async def add(self, content: object) -> tuple[bool, Backend, SiblingAnswers]:
        """Add the backend that ``content`` describes, or change it if it was added before.

        Returns:
            Whether it is new in the fleet, the backend, and the siblings once they have it, too.

        Raises:
            ClientError: 400, ``content`` describes no backend; 409, it is in the configuration, or its name is taken.
        """
        described, config = self._checked(content, JoiningEntry)
        other = self._namesake(described)
        if other is not None:
            raise _name_is_taken(f"{described.name!r} is the name of {other}")
        entry = as_written(described)
        if self._discovery.source_of(entry["url"]) == CONFIGURED:
            raise _is_configured(entry["url"])
        is_new = self._backend(entry["url"]) is None
        return is_new, *await self._join(config, ADDED, Roster.adding(entry))

    async def announce(self, content: object) -> tuple[Backend, float]:
        """Add the backend that ``content`` describes until its lease ends, or renew the lease.

        Raises as :meth:`add`; but a backend of the configuration stays as it is configured.

        Returns:
            The backend, once all workers have it, and the seconds of the lease.
        """
        described, config = self._checked(content, AnnouncedEntry)
        if self._namesake(described) is not None:  # an announcer must not learn of other backends
            raise _name_is_taken(f"{described.name!r} is the name of another backend")
        ends_at = self._fleet.clock() + described.lease_seconds
        entry = as_written(described)
        known, backend = self.roster.announced.get(server_of(config.url)), self._backend(config.url)
        command = Roster.announcing(entry, described.announcer, ends_at)
        if known is not None and known.entry == entry and backend is not None:
            self._change_roster(command)  # most are renewals, which need not wait for other workers
        else:
            backend, _ = await self._join(config, ANNOUNCED, command)
        return backend, described.lease_seconds

    def _checked(self, content: object, form: type[_Form]) -> tuple[_Form, BackendConfig]:
        if not isinstance(content, dict):
            raise ClientError('The body must be a JSON object such as {"url": "http://llm-3:8080"}.')
        try:
            entry = described_backend(content, form)
            config = self._config_of(as_written(entry))
            check_engines([config], self._engines)
        except (DescriptionError, UnknownEngineError) as error:
            text = str(error)
            raise ClientError(text if text.endswith("?") else f"{text}.", code="invalid_backend") from None
        return entry, config

    def _namesake(self, entry: BackendEntry) -> str | None:
        """The base URL of another backend that has the name of ``entry``."""
        server = server_of(entry.url)
        every = (config for member in self._discovery.members for config in member.backends)
        return next((one.url for one in every if one.name == entry.name and server_of(one.url) != server), None)

    async def _join(self, config: BackendConfig, source: str, command: Command) -> tuple[Backend, SiblingAnswers]:
        def has_joined() -> bool:
            backend = self._backend(config.url)
            if backend is None:
                return False
            # The union may have another name for it.
            is_as_described = replace(backend.config, name=config.name) == config
            return is_as_described or self._discovery.source_of(config.url) != source

        siblings = await self._carry_out(command, config.url, has_joined, is_present=True)
        backend = self._backend(config.url)
        if backend is None:
            text = "The command did not reach all workers in time. Repeat it."
            raise CapacityError(text, retry_after_seconds=1)
        return backend, siblings

    # --- backends that leave

    async def remove(self, name: str, *, moves: bool, wait_seconds: float) -> Left:
        """Remove a backend that was added or announced.

        Args:
            name: its name or URL.
            moves: whether other backends take over its requests, as far as they can.
            wait_seconds: longest wait for its last request to end.

        Raises:
            ClientError: 404, there is no such backend; 409, another source has it, which would bring it back.
        """
        backend = find_backend(self._fleet, name)
        server = server_of(backend.url)
        if server not in self.roster.added and server not in self.roster.announced:
            source = self._discovery.source_of(backend.url)
            raise _is_configured(backend.url) if source == CONFIGURED else _is_discovered(backend.url, source)
        stays = self._others_have(backend.url, ADDED, ANNOUNCED)
        return await self._leave(backend.url, Roster.removing(backend.url), stays, moves, wait_seconds)

    async def withdraw(self, url: str, announcer: str, *, moves: bool, wait_seconds: float) -> Left:
        """End the lease of one announcer; without effect if it has none.

        The backend leaves unless another announcer or another source has it. Other arguments as for :meth:`remove`.
        """
        announcement = self.roster.announced.get(server_of(url))
        leases = set() if announcement is None else announcement.leases.keys() - {announcer}
        stays = bool(leases) or self._others_have(url, ANNOUNCED)
        return await self._leave(url, Roster.withdrawing(url, announcer), stays, moves, wait_seconds)

    async def _leave(self, url: str, command: Command, stays: bool, moves: bool, wait_seconds: float) -> Left:
        backend, deadline = self._backend(url), self._fleet.clock() + wait_seconds
        if moves and backend is not None and not stays:  # while it is still in the fleet of every worker
            await self._workers.drain(backend, wait_seconds, moves=True)
        siblings = await self._carry_out(command, url, lambda: stays or self._backend(url) is None, is_present=stays)
        # Only these commands wait for the end of requests, so they poll instead of being notified.
        while not stays and self._requests_on(url) and self._fleet.clock() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(_LOOK_SECONDS)
        if not stays and siblings.requests_on(url):
            await self._workers.others_end(url, deadline, lambda: True)
            siblings = await self._workers.fleet()
        requests = self._requests_on(url) + siblings.requests_on(url)
        return Left(url, self._discovery.source_of(url), requests, siblings)

    # --- the state

    async def _carry_out(
        self, command: Command, url: str, is_done: Callable[[], bool], *, is_present: bool
    ) -> SiblingAnswers:
        """Send ``command`` to all workers, and wait for them.

        Args:
            is_done: whether this worker has carried it out.
            is_present: whether ``url`` is in the fleets of the others then.

        Raises:
            ClientError: 413, the command is too long.
        """
        if len(command) > LONGEST_BYTES - _ROOM_BYTES:
            raise ClientError("The description is too long.", status=413, code="body_too_large")
        self._change_roster(command)
        deadline = self._fleet.clock() + _COMMAND_SECONDS
        while True:
            siblings = await self._workers.fleet()
            backend = self._backend(url)
            spelt = url if backend is None else backend.url  # perhaps otherwise, by another source
            if (is_done() and siblings.have_followed(spelt, is_present=is_present)) or self._fleet.clock() >= deadline:
                return siblings
            await self._workers.pause()

    def _others_have(self, url: str, *sources: str) -> bool:
        """Whether a source has the backend ``url`` that is none of ``sources``."""
        return any(
            server_of(config.url) == server_of(url)
            for member in self._discovery.members
            if member.name not in sources
            for config in member.backends
        )

    def _backend(self, url: str) -> Backend | None:
        server = server_of(url)
        return next((backend for backend in self._fleet.backends if server_of(backend.url) == server), None)

    def _requests_on(self, url: str) -> int:
        """The requests of all workers on a backend, which may have left."""
        backends = (*self._fleet.backends, *self._departures.backends)
        return sum(backend.load.proxy_leases for backend in backends if server_of(backend.url) == server_of(url))


def _name_is_taken(problem: str) -> ClientError:
    return ClientError(f"name: {problem}: choose another one.", status=409, code="name_in_use")


def _is_configured(url: str) -> ClientError:
    text = (
        f"{url} is configured: change it in the fleet file or in BACKENDS. POST /admin/backends/NAME/drain takes it "
        "out of rotation."
    )
    return ClientError(text, status=409, code="backend_is_configured")


def _is_discovered(url: str, source: str | None) -> ClientError:
    text = f"{url} was found by the {source}, which would bring it back. POST /admin/backends/NAME/drain takes it out "
    return ClientError(f"{text}of rotation.", status=409, code="backend_is_discovered")
