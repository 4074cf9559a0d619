"""Finds frozen backends early: probes a backend at once when none of its requests makes progress.

A backend that reads a long prompt sends nothing, too, but it answers the probe. A poll would find a frozen backend only
after two intervals.
"""

from __future__ import annotations

import asyncio
import logging

from inference_engine_proxy_server.errors import BackendError, CapacityError
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.fleet import Fleet
from inference_engine_proxy_server.wire.fetch import Inquiry

__all__ = ["StandstillWatch"]

_LOOK_SECONDS = 0.25
_STILL_SECONDS = 0.75  # without a byte from any request; slow engines need longer for a token, and answer the probe
_PROBE_SECONDS = 1.5  # for the answer; together at most 2.5 s, so that clients of a frozen engine wait less than 3 s
_PROBE_BYTES = 64 * 1024
_OWN_DELAY_SECONDS = 0.25  # the probe ends later than this only if the event loop of the proxy is late

logger = logging.getLogger(__name__)


class StandstillWatch:
    """Watches the requests of all backends.

    Args:
        fleet: receives the evidence.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._probed_until: dict[Backend, float] = {}  # when a backend may be probed again

    async def run(self) -> None:
        """Look at all backends again and again, until cancelled."""
        async with asyncio.TaskGroup() as probes:
            while True:
                await asyncio.sleep(_LOOK_SECONDS)
                now = self._fleet.clock()
                self._probed_until = {one: at for one, at in self._probed_until.items() if at > now}
                self._fleet.forget_finished()
                for backend in self._fleet.watched:
                    if backend not in self._probed_until and self._stands_still(backend):
                        self._probed_until[backend] = now + _PROBE_SECONDS
                        probes.create_task(self._probe(backend))

    def _stands_still(self, backend: Backend) -> bool:
        """Whether the backend has requests and makes no progress; false if it answers no polls, or gets none."""
        if (
            backend.config.is_external
            or not backend.load.proxy_leases
            or not backend.is_live
            or backend.health.is_silent
        ):
            return False
        activity = backend.connections.activity()
        if activity.waiting_since is None:
            return False
        return self._fleet.clock() - max(activity.waiting_since, activity.last_byte_at) >= _STILL_SECONDS

    async def _probe(self, backend: Backend) -> None:
        inquiry = Inquiry(backend.connections, _PROBE_BYTES)
        late_at = self._fleet.clock() + _PROBE_SECONDS + _OWN_DELAY_SECONDS
        credentials = backend.credentials or b""
        try:
            await inquiry.fetch(backend.health_path, credentials=credentials, timeout_seconds=_PROBE_SECONDS)
        except TimeoutError:
            if self._fleet.clock() < late_at and self._stands_still(backend):
                self._fleet.report_standstill(backend)
        except (BackendError, CapacityError) as error:
            logger.debug("backend %s was not probed: %r", backend.url, error)
            backend.recheck.set()
        finally:
            inquiry.close()
