"""A backend that one process finds out of order is looked at by all others at once.

They do not take its word for it: a process whose network is broken must not take a fleet away from the others. Until a
backend answers their own poll, it is their last choice. If it fails requests, one failed request of their own is
enough to suspend it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence

from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.fleet import Fleet, FleetObserver
from inference_engine_proxy_server.fleet.health import Health

__all__ = ["SharedDoubts"]

_LEAST_SECONDS = 1.0  # between two doubts about one backend: a replica that errs all the time must not cause many polls
_KNOWN_SECONDS = 5.0  # after which a doubt of others is no news any more

logger = logging.getLogger(__name__)


class SharedDoubts(FleetObserver):
    """Tells other processes of backends that are out of order here, and listens to theirs.

    Args:
        fleet: the backends.
        member: the identity of this process.
        post: sends a message to all processes.
    """

    def __init__(self, fleet: Fleet, member: str, post: Callable[[bytes], None]) -> None:
        self._fleet = fleet
        self._member = member
        self._post = post
        self._was_well = {backend.url: backend.health.state.is_well for backend in fleet.backends}
        self._heard_at: dict[str, float] = {}
        fleet.subscribe(self)

    def on_replaced(self, backends: Sequence[Backend]) -> None:
        """See :class:`FleetObserver`."""
        self._was_well = {one.url: self._was_well.get(one.url, False) for one in backends}
        self._heard_at = {url: at for url, at in self._heard_at.items() if url in self._was_well}

    def on_reviewed(self, backend: Backend) -> None:
        """See :class:`FleetObserver`."""
        state, url = backend.health.state, backend.url
        was_well, self._was_well[url] = self._was_well.get(url, False), state.is_well
        if not was_well or state not in (Health.DOWN, Health.SUSPECT):
            return
        heard_at = self._heard_at.get(url)
        if heard_at is not None and self._fleet.clock() - heard_at < _KNOWN_SECONDS:
            return  # the others know it
        doubt = {"from": self._member, "backend": url, "fails_requests": state is Health.SUSPECT}
        self._post(json.dumps(doubt).encode())

    def hear(self, message: bytes) -> None:
        """Take a message of any process."""
        try:
            doubt = json.loads(message)
            sender, url, fails_requests = doubt["from"], doubt["backend"], doubt["fails_requests"] is True
        except (ValueError, TypeError, KeyError):
            logger.warning("shared state: a message about a backend cannot be read")
            return
        backend = next((one for one in self._fleet.backends if one.url == url), None)
        if backend is None or sender == self._member:
            return
        now = self._fleet.clock()
        heard_at = self._heard_at.get(url)
        if heard_at is None or now - heard_at >= _LEAST_SECONDS:
            self._heard_at[url] = now
            self._fleet.report_doubt(backend, fails_requests=fails_requests)
