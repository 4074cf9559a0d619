"""The one loop with a clock: asks every backend for its state, again and again, and publishes the answers.

Each backend has a loop of its own, so a slow one delays nobody, and none is ever asked twice at a time.
"""

from __future__ import annotations

import asyncio
import logging
import random

from inference_engine_proxy_server.backends.base import (
    BackendState,
    BaseBackend,
    Get,
    Reply,
    Thresholds,
    UnreadableState,
)
from inference_engine_proxy_server.backends.registry import Engines, identify
from inference_engine_proxy_server.core.backend_pool import Backend, BackendPool
from inference_engine_proxy_server.errors import BackendError, BackendTimeout, CapacityError, InvalidReply
from inference_engine_proxy_server.wire.fetch import fetch

__all__ = ["CacheRefresher"]

logger = logging.getLogger(__name__)

_JITTER = 0.2  # of the interval, so that a fleet is not asked in step
_DOWN_SECONDS = 1.0  # between two looks at a backend that is not live: one that comes up should wait for nobody
_FETCH_SECONDS = 2.0  # HAProxy's default for a health check
_FETCH_BYTES = 4 * 1024 * 1024  # a vLLM with many adapters and engines exposes about a tenth of it


class CacheRefresher:
    """Keeps what the pool knows of its backends fresh.

    Args:
        pool: where the answers go.
        engines: who understands which backend.
        thresholds: for engines that call themselves busy.
        refresh_seconds: the interval.
        always_keep_alive: keep connections even to engines that ask for the contrary.
    """

    def __init__(
        self,
        pool: BackendPool,
        engines: Engines,
        thresholds: Thresholds,
        refresh_seconds: float,
        *,
        always_keep_alive: bool = False,
    ) -> None:
        self._pool = pool
        self._engines = engines
        self._thresholds = thresholds
        self._refresh_seconds = refresh_seconds
        self._always_keep_alive = always_keep_alive
        self._identified: dict[Backend, BaseBackend] = {}
        self._puzzling: set[Backend] = set()  # their engine's class raised what it must not raise

    async def run(self) -> None:
        """Ask all backends again and again, each a moment from now first, until cancelled."""
        async with asyncio.TaskGroup() as loops:
            for backend in self._pool.backends:
                loops.create_task(self._watch(backend))

    async def first_round(self) -> None:
        """Ask all backends once, and wait for their answers for a moment: a start must not hang on a dead one."""
        try:
            async with asyncio.timeout(_FETCH_SECONDS), asyncio.TaskGroup() as questions:
                for backend in self._pool.backends:
                    questions.create_task(self.refresh(backend))
        except TimeoutError:
            logger.warning("not every backend has answered yet; they join as they do")

    async def _watch(self, backend: Backend) -> None:
        while True:
            await self._pause(backend)
            await self.refresh(backend)

    async def _pause(self, backend: Backend) -> None:
        """Until it is time to ask again, or somebody wants to know at once."""
        seconds = self._refresh_seconds if backend.state.live else min(self._refresh_seconds, _DOWN_SECONDS)
        try:
            async with asyncio.timeout(seconds * random.uniform(1 - _JITTER, 1 + _JITTER)):
                await backend.recheck.wait()
        except TimeoutError:
            pass
        backend.recheck.clear()

    async def refresh(self, backend: Backend) -> None:
        """Ask ``backend`` once, and publish what it tells, or that it does not. Raises nothing."""
        asked_at = self._pool.clock()
        own_when_asked = backend.leases
        try:
            state = await self._ask(backend)
        except (TimeoutError, UnreadableState, CapacityError) as error:
            logger.debug("backend %s told nothing: %r", backend.url, error)
            self._pool.report_silence(backend)
            return
        except OSError:
            self._identified.pop(backend, None)  # what comes back at this address may be another engine
            state = BackendState(ready=False, live=False, reason="it cannot be reached")
        except Exception as error:
            if backend not in self._puzzling:
                self._puzzling.add(backend)
                logger.exception("backend %s: its engine's class failed; said once until it works again", backend.url)
            logger.debug("backend %s: its engine's class failed: %r", backend.url, error)
            self._pool.report_silence(backend)
            return
        self._puzzling.discard(backend)
        own_at_poll = max(own_when_asked, backend.leases)
        self._pool.publish(backend, state, own_at_poll=own_at_poll, asked_at=asked_at)

    async def _ask(self, backend: Backend) -> BackendState:
        engine = self._identified.get(backend)
        if engine is None:
            get = _get_from(backend)
            engine_class = await identify(self._engines, get)
            if engine_class is None:
                return BackendState(ready=False, live=False, reason="it is starting")
            engine = self._identified[backend] = engine_class(backend.url, get, self._thresholds)
            backend.connections.keep_alive(wanted=engine_class.reuses_connections or self._always_keep_alive)
            logger.info("backend %s: its engine is %s", backend.url, engine_class.__name__)
        return await engine.fetch_state()


def _get_from(backend: Backend) -> Get:
    async def get(path: str) -> Reply:
        try:
            reply = await fetch(
                backend.connections,
                path,
                credentials=backend.credentials or b"",
                timeout_seconds=_FETCH_SECONDS,
                limit_bytes=_FETCH_BYTES,
            )
        except InvalidReply as error:
            raise UnreadableState(str(error)) from error
        except BackendError as error:
            if isinstance(error, BackendTimeout) or isinstance(error.__cause__, TimeoutError):
                raise TimeoutError(str(error)) from error
            raise ConnectionError(str(error)) from error
        return Reply(reply.status, reply.body)

    return get
