"""Completes a step of the history every ten seconds."""

from __future__ import annotations

import asyncio
import time

from inference_engine_proxy_server.dashboard.in_flight import InFlight
from inference_engine_proxy_server.dashboard.live_requests import LiveRequests
from inference_engine_proxy_server.dashboard.traffic import STEP_SECONDS, Traffic
from inference_engine_proxy_server.dispatch.leases import Dispatcher

__all__ = ["Recorder"]


class Recorder:
    """Keeps the history.

    Args:
        traffic: the finished requests.
        live: the live requests.
        in_flight: samples of requests in flight.
        dispatcher: has the queue.
    """

    def __init__(self, traffic: Traffic, live: LiveRequests, in_flight: InFlight, dispatcher: Dispatcher) -> None:
        self._traffic = traffic
        self._live = live
        self._in_flight = in_flight
        self._dispatcher = dispatcher

    async def run(self) -> None:
        """Complete each step when its time is over, until cancelled."""
        while True:
            await asyncio.sleep(STEP_SECONDS - time.time() % STEP_SECONDS)
            self._traffic.read()
            self._traffic.credit(self._live.progress())
            if self._traffic.end_step(self._dispatcher.requests_waiting):
                self._in_flight.sample()
