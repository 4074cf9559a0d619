"""Polls the state of every backend repeatedly, and publishes the answers.

Each backend has its own loop, so a slow one delays no other, and no backend has two polls in flight.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from dataclasses import replace

import msgspec

from inference_engine_proxy_server.backends.base import BackendState, BaseBackend, Probe, Thresholds, UnreadableState
from inference_engine_proxy_server.backends.registry import Engines, identify
from inference_engine_proxy_server.config.fleet import BackendConfig
from inference_engine_proxy_server.errors import BackendError, CapacityError
from inference_engine_proxy_server.fleet.backend import Backend
from inference_engine_proxy_server.fleet.fleet import Fleet
from inference_engine_proxy_server.fleet.health import Health
from inference_engine_proxy_server.fleet.poll import NoConnectionInTime, NoReply, NotHttp, Polls, Unusable
from inference_engine_proxy_server.wire.fetch import Inquiry

__all__ = ["CacheRefresher"]

logger = logging.getLogger(__name__)

_JITTER = 0.2  # of the interval, so that the polls of a fleet do not coincide
# Polls that begin together cost 40 % less CPU time (256 backends, measured): the code is in the processor's cache then.
_STARTS = 20  # moments of an interval at which polls begin
_DOUBT_SECONDS = 1.0  # interval for a backend that is not up, so that its recovery is noticed soon
_EXTERNAL_SECONDS = 30.0  # interval for an external service, which only shows that it can be reached
_SILENT_SECONDS = 0.5  # interval for a backend that did not answer
_FETCH_SECONDS = 2.0  # HAProxy's default for a health check; less if the interval is shorter
_LEAST_FETCH_SECONDS = 0.5
_TEST_SECONDS = 10.0  # for one token
_IDENTIFICATIONS = 3  # of a backend that lets questions about its engine time out; the fallback is used meanwhile
_FETCH_BYTES = 4 * 1024 * 1024  # a vLLM server with many adapters and engines sends about a tenth of this

_EXTERNAL = BackendState(ready=True)
_UNKNOWN_ENGINE = "GET /v1/models does not identify the engine yet: it is starting, or it is no engine"


class CacheRefresher:
    """Polls the backends of a fleet.

    Args:
        fleet: receives the answers.
        engines: the known engines.
        thresholds: limits above which a backend is busy.
        refresh_seconds: interval between two polls of a backend.
        always_keep_alive: keep connections open even to engines that should not reuse them.
        tests_suspects: test a backend that seems stuck with a request for one token.
        via: the header line ``Via``, by which the proxy recognizes its own polls.
        forwards_keys: whether backends without a key of the proxy get the clients' own keys.
    """

    def __init__(
        self,
        fleet: Fleet,
        engines: Engines,
        thresholds: Thresholds,
        refresh_seconds: float,
        *,
        always_keep_alive: bool = False,
        tests_suspects: bool = False,
        via: bytes = b"",
        forwards_keys: bool = True,
    ) -> None:
        self._fleet = fleet
        self._engines = engines
        self._thresholds = thresholds
        self._refresh_seconds = refresh_seconds
        self._fetch_seconds = min(_FETCH_SECONDS, max(_LEAST_FETCH_SECONDS, refresh_seconds))
        self._polls = Polls(via, self._fetch_seconds, forwards_keys=forwards_keys)
        self._always_keep_alive = always_keep_alive
        self._tests_suspects = tests_suspects
        self._identified: dict[Backend, BaseBackend] = {}
        self._logged: dict[Backend, type[BaseBackend]] = {}  # the engine of each backend that the log names
        self._doubts: Counter[Backend] = Counter()  # identifications in which a question got no answer
        self._inquiries: dict[Backend, Inquiry] = {}
        self._failing: set[Backend] = set()  # backends whose engine class raised an unexpected exception
        self._polled: set[Backend] = set()  # at least once
        self._has_polled = asyncio.Event()
        self._phase = random.random()  # so that workers do not poll at the same moments

    async def run(self) -> None:
        """Poll each backend at once when it joins, and then at its interval, until cancelled."""
        watches: dict[Backend, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as loops:
            while True:
                for gone in watches.keys() - set(self._fleet.watched):
                    watches.pop(gone).cancel()
                    self._forget_engine(gone)
                    self._logged.pop(gone, None)
                    self._inquiries.pop(gone, None)
                    self._failing.discard(gone)
                    self._polled.discard(gone)
                for backend in self._fleet.watched:
                    if backend not in watches:
                        watches[backend] = loops.create_task(self._watch(backend))
                self._fleet.changed.clear()
                await self._fleet.changed.wait()

    def forget_engine(self, backend: Backend) -> None:
        """The configuration of ``backend`` changed: identify its engine again, at once."""
        self._forget_engine(backend)
        backend.recheck.set()

    def _forget_engine(self, backend: Backend) -> None:
        self._identified.pop(backend, None)
        del self._doubts[backend]

    async def first_round(self) -> None:
        """While :meth:`run` runs, wait briefly for the first polls: a dead backend must not delay the start."""
        try:
            async with asyncio.timeout(self._fetch_seconds):
                while not self._polled.issuperset(self._fleet.backends):
                    self._has_polled.clear()
                    await self._has_polled.wait()
        except TimeoutError:
            logger.warning("not every backend has answered yet; each joins when it does")

    async def _watch(self, backend: Backend) -> None:
        while True:
            await self.refresh(backend)
            self._polled.add(backend)
            self._has_polled.set()
            if (
                self._tests_suspects
                and not backend.config.is_external
                and backend.health.state is Health.SUSPECT
                and backend.health.is_stuck
            ):
                await self._test(backend)
            await self._pause(backend)

    async def _pause(self, backend: Backend) -> None:
        """Wait until the next poll is due, or is requested at once."""
        seconds = _EXTERNAL_SECONDS if backend.config.is_external else self._refresh_seconds
        if backend.health.state is not Health.UP:
            seconds = min(seconds, _SILENT_SECONDS if backend.health.is_silent else _DOUBT_SECONDS)
        due_at = asyncio.get_running_loop().time() + seconds * random.uniform(1 - _JITTER, 1 + _JITTER)
        step = seconds / _STARTS
        try:
            async with asyncio.timeout_at(due_at + (self._phase - due_at) % step):
                await backend.recheck.wait()
        except TimeoutError:
            pass
        backend.recheck.clear()

    async def _test(self, backend: Backend) -> None:
        """Let ``backend`` generate one token. Skip this if its slots are full: the answer would be late anyway."""
        reported = backend.health.reported
        if reported.capacity is not None and (reported.requests_processing or 0.0) >= reported.capacity:
            return
        request = {"model": min(backend.serving.model_ids, default=""), "prompt": "1", "max_tokens": 1}
        sent_at = self._fleet.clock()
        inquiry = Inquiry(backend.connections, _FETCH_BYTES)
        try:
            reply = await inquiry.fetch(
                "/v1/completions",
                json_body=msgspec.json.encode(request),
                credentials=backend.credentials or b"",
                timeout_seconds=_TEST_SECONDS,
            )
        except (BackendError, CapacityError, TimeoutError) as error:
            logger.debug("backend %s did not pass its test: %r", backend.url, error)
            return
        finally:
            inquiry.close()
        if reply.status < 500:
            self._fleet.report_success(backend, sent_at)

    async def refresh(self, backend: Backend) -> None:
        """Poll ``backend`` once, and publish its state, or that it did not answer. Raises nothing."""
        asked_at = self._fleet.clock()
        own_when_asked = backend.load.proxy_leases
        if backend.loaded_models is not None:
            backend.loaded_models.begin_poll()
        try:
            state = await self._ask(backend)
        except CapacityError as error:
            # The proxy lacks a file descriptor, a port or CPU time, which is not the backend's fault.
            logger.debug("backend %s was not polled: %r", backend.url, error)
            return
        except (TimeoutError, UnreadableState) as error:
            logger.debug("backend %s reported no state: %r", backend.url, error)
            is_known = isinstance(error, (NoConnectionInTime, NotHttp))
            self._fleet.report_silence(backend, str(error) if is_known else "")
            return
        except OSError as error:
            self._forget_engine(backend)  # another engine may come back at this address
            self._fleet.report_refusal(backend, str(error) if isinstance(error, NoReply) else "it cannot be reached")
            return
        except Exception as error:
            if backend not in self._failing:
                self._failing.add(backend)
                logger.exception("backend %s: its engine class failed; logged once until it works again", backend.url)
            logger.debug("backend %s: its engine class failed: %r", backend.url, error)
            self._fleet.report_silence(backend)
            return
        self._failing.discard(backend)
        own_at_poll = max(own_when_asked, backend.load.proxy_leases)
        self._fleet.publish(backend, state, own_at_poll=own_at_poll, asked_at=asked_at)

    async def _ask(self, backend: Backend) -> BackendState:
        inquiry = self._inquiries.get(backend)
        if inquiry is None:
            inquiry = self._inquiries[backend] = Inquiry(backend.connections, _FETCH_BYTES)
        try:
            if backend.config.is_external:
                await self._polls.reach(inquiry)
                return _EXTERNAL
            engine = await self._engine_of(backend, inquiry)
            if engine is None:
                return BackendState(ready=False, live=False, starting=True, reason=_UNKNOWN_ENGINE)
            return _within_stated_bounds(await engine.fetch_state(), backend.config)
        except Unusable as error:
            return BackendState(ready=False, live=False, reason=str(error))
        finally:
            inquiry.close()

    def _thresholds_of(self, config: BackendConfig) -> Thresholds:
        usual = self._thresholds
        waiting = usual.requests_waiting if config.max_requests_waiting is None else config.max_requests_waiting
        if config.max_requests_processing is not None:
            return Thresholds(config.max_requests_processing, waiting)
        if usual.grows_with_slots and config.capacity is not None:
            processing = max(usual.requests_processing, config.capacity)
            return replace(usual, requests_processing=processing, requests_waiting=waiting)
        return replace(usual, requests_waiting=waiting)

    async def _engine_of(self, backend: Backend, inquiry: Inquiry) -> BaseBackend | None:
        engine = self._identified.get(backend)
        if engine is None:
            get = self._polls.get_from(backend, inquiry)
            stated = backend.config.engine
            probe = Probe(get)
            engine_class = self._engines.by_provider[stated] if stated else await identify(self._engines, probe)
            if engine_class is None:
                return None
            engine = engine_class(backend.url, get, self._thresholds_of(backend.config))
            self._doubts[backend] += probe.is_incomplete
            is_sure = not probe.is_incomplete or engine_class is not self._engines.fallback
            if is_sure or self._doubts[backend] >= _IDENTIFICATIONS:
                self._identified[backend] = engine
            backend.engine = next(iter((*engine_class.providers, engine_class.__name__)))
            backend.health_path = engine_class.health_path
            backend.connections.keep_alive(wanted=engine_class.reuses_connections or self._always_keep_alive)
            if self._logged.get(backend) is not engine_class:
                self._logged[backend] = engine_class
                logger.info("backend %s: its engine is %s", backend.url, backend.engine)
        return engine


def _within_stated_bounds(state: BackendState, config: BackendConfig) -> BackendState:
    """``state``, but busy if it exceeds the limits in the configuration."""
    for count, most, what in (
        (state.requests_processing, config.max_requests_processing, "processing"),
        (state.requests_waiting, config.max_requests_waiting, "waiting"),
    ):
        if state.ready and count is not None and most is not None and count > most:
            return replace(state, ready=False, reason=f"busy: {count:g} requests {what}, limit {most}")
    return state
