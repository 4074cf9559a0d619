"""Cancels live requests, whichever worker has them."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from inference_engine_proxy_server.dashboard.live_requests import LiveRequests
from inference_engine_proxy_server.processes.siblings import Answers, Siblings

__all__ = ["Cancelled", "Cancelling"]

_CANCEL = "cancel"


class Cancelled(NamedTuple):
    """The result of a command.

    Attributes:
        requests: how many were cancelled; more than one if clients use the same id several times.
        silent: numbers of the workers that did not answer.
    """

    requests: int
    silent: tuple[int, ...]


class Cancelling:
    """Cancels requests of this worker and its siblings.

    Args:
        live: the requests of this worker.
        siblings: the other workers.
    """

    def __init__(self, live: LiveRequests, siblings: Siblings) -> None:
        self._live = live
        self._siblings = siblings

    @property
    def answers(self) -> Answers:
        """The answers of this worker to commands of its siblings."""
        return {_CANCEL: lambda request_id: b"%d" % self._live.cancel(request_id)}

    async def cancel(self, request_id: str) -> Cancelled:
        """End all requests with this id: their backends see a disconnect, and their clients get an error."""
        own = self._live.cancel(request_id)
        answers = await self._siblings.ask(f"{_CANCEL} {request_id}")
        await asyncio.sleep(0)  # the requests of this worker end in the next turn of the event loop
        others = sum(int(answer) for answer in answers.values() if answer is not None)
        return Cancelled(own + others, tuple(number for number, answer in answers.items() if answer is None))
