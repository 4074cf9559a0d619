"""Keeps the last set of each source, and applies the union to the fleet."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from inference_engine_proxy_server.config.base_urls import server_of
from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.telemetry.journal import Journal

__all__ = ["FleetUnion", "Member"]

logger = logging.getLogger(__name__)


class Member:
    """What one source has found; a :class:`~.source.SourceReport`.

    Args:
        name: of the source.
        on_found: called after its set has changed.
        journal: notes its problems.
        backends: its first set.

    Attributes:
        name: of the source.
        backends: its last set.
        answered_at: when it last answered, in seconds since the epoch; ``None`` if it never did.
        problem: why it does not answer now; empty if it does, or has not been asked yet.
        heard: set when it has answered or failed.
    """

    def __init__(
        self, name: str, on_found: Callable[[], object], journal: Journal, backends: Sequence[BackendConfig] = ()
    ) -> None:
        self.name = name
        self.backends = tuple(backends)
        self.answered_at: float | None = None
        self.problem = ""
        self.heard = asyncio.Event()
        self._on_found = on_found
        self._journal = journal

    def __repr__(self) -> str:
        return f"<Member {self.name}: {len(self.backends)} backends>"

    def found(self, backends: Sequence[BackendConfig]) -> None:
        """See :class:`~.source.SourceReport`."""
        if self.problem:
            logger.info("discovery: %s answers again", self.name)
            self._journal.note("reload", f"Source {self.name} answers again.")
        self.problem, self.answered_at = "", time.time()
        self.heard.set()
        self._adopt(tuple(backends))

    def failed(self, problem: str, *, backends_leave: bool = False) -> None:
        """See :class:`~.source.SourceReport`."""
        if problem != self.problem or (backends_leave and self.backends):
            move = "leave" if backends_leave else "stay"
            result = f"its backends {move}" if self.backends else "it has no backends"
            logger.warning("discovery: %s: %s; %s", self.name, problem, result)
            self._journal.note("reload", f"Source {self.name}: {problem}; {result}.", severity="warning")
        self.problem = problem
        self.heard.set()
        if backends_leave:
            self._adopt(())

    def _adopt(self, backends: tuple[BackendConfig, ...]) -> None:
        if backends != self.backends:
            self.backends = backends
            self._on_found()


class FleetUnion:
    """The union of the sets of all sources.

    Args:
        apply: makes backends the fleet; returns whether that changed anything.
        journal: notes problems of sources.

    Attributes:
        members: one for each source. If several have a backend, the settings of the first one apply.
    """

    def __init__(self, apply: Callable[[Sequence[BackendConfig]], bool], journal: Journal) -> None:
        self.members: tuple[Member, ...] = ()
        self._apply = apply
        self._journal = journal
        self._doubles: set[tuple[str, str, str]] = set()

    def member(self, name: str, backends: Sequence[BackendConfig] = ()) -> Member:
        """A member for the source ``name`` with its first set. It counts once it is one of ``members``."""
        return Member(name, self.update, self._journal, backends)

    def arrange(self, members: Iterable[Member]) -> bool:
        """Replace the members. Returns whether the fleet has changed."""
        self.members = tuple(members)
        return self.update()

    def update(self) -> bool:
        """Apply the union. Returns whether the fleet has changed."""
        return self._apply(self._merged())

    def _merged(self) -> list[BackendConfig]:
        found: dict[tuple[str, str, int, str], tuple[Member, BackendConfig]] = {}
        doubles = set()
        for member in self.members:
            for config in member.backends:
                first, _ = found.setdefault(server_of(config.url), (member, config))
                if first is not member:
                    doubles.add((config.url, first.name, member.name))
        for url, first_name, other_name in sorted(doubles - self._doubles):
            logger.info(
                "discovery: %s is of %s and of %s; the settings of the first apply", url, first_name, other_name
            )
        self._doubles = doubles
        return _with_own_names(config for _, config in found.values())


def _with_own_names(backends: Iterable[BackendConfig]) -> list[BackendConfig]:
    """``backends``; one whose name is that of an earlier one is named by its URL."""
    names: set[str] = set()
    result = []
    for config in backends:
        own = replace(config, name=config.url) if config.name in names else config
        names.add(own.name)
        result.append(own)
    return result
