"""The feed: one snapshot a second for all viewers, as long as there are any."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator

import msgspec

from inference_engine_proxy_server.dashboard.audience import Audience
from inference_engine_proxy_server.dashboard.reporter import Moment, Reporter
from inference_engine_proxy_server.errors import CapacityError

__all__ = ["MOST_OTHERS", "MOST_VIEWERS", "Feed", "Seat"]

MOST_VIEWERS = 32
"""Viewers of one process."""

MOST_OTHERS = 24
"""Of these, viewers who are not operators: anyone can be one, and must not keep operators out."""

_TICK_SECONDS = 1.0


class _Frames:
    """The frames of one tick, each encoded once, when a viewer needs it.

    Args:
        number: of the tick.
        moment: what the frames show.
        shown: the moment that the frames of the tick before show; ``None`` for the first tick.
    """

    def __init__(self, number: int, moment: Moment, shown: Moment | None) -> None:
        self._number = number
        self._moment = moment
        self._shown = shown
        self._encoded: dict[tuple[Audience, bool], bytes] = {}

    def frame(self, audience: Audience, *, is_complete: bool) -> bytes:
        """The frame for ``audience``, as a server-sent event; incomplete ones say only what is new."""
        found = self._encoded.get((audience, is_complete))
        if found is None:
            content = self._moment.as_json(audience, None if is_complete else self._shown)
            found = b"id: %d\nevent: snapshot\ndata: %b\n\n" % (self._number, msgspec.json.encode(content))
            self._encoded[audience, is_complete] = found
        return found


class Seat:
    """One viewer. A frame that it has not taken when the next one comes is dropped.

    Attributes:
        audience: which frames it gets.
    """

    def __init__(self, audience: Audience) -> None:
        self.audience = audience
        self._frame: bytes | None = None
        self._needs_all = True  # at first, and after a frame was dropped
        self._is_over = False
        self._changed = asyncio.Event()

    def offer(self, frames: _Frames) -> None:
        """Offer the frame of a tick."""
        is_complete = self._needs_all or self._frame is not None
        self._frame = frames.frame(self.audience, is_complete=is_complete)
        self._needs_all = False
        self._changed.set()

    def end(self) -> None:
        """There will be no more frames."""
        self._is_over = True
        self._changed.set()

    async def frames(self) -> AsyncIterator[bytes]:
        """The frames, as the viewer takes them, until the end."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            frame, self._frame = self._frame, None
            if frame is not None:
                yield frame
            if self._is_over:
                return


class Feed:
    """Feeds the viewers. Without any, it does nothing.

    Args:
        reporter: makes the snapshots.
        tick_seconds: between two snapshots.
    """

    def __init__(self, reporter: Reporter, tick_seconds: float = _TICK_SECONDS) -> None:
        self._reporter = reporter
        self._tick_seconds = tick_seconds
        self._seats: set[Seat] = set()
        self._has_viewers = asyncio.Event()
        self._numbers = itertools.count(1)
        self._frames: _Frames | None = None  # of the latest tick
        self._shown: Moment | None = None  # at the latest tick
        self._is_closed = False

    def __repr__(self) -> str:
        return f"<Feed of {len(self._seats)} viewers>"

    def require_room(self, audience: Audience) -> None:
        """Raise ``CapacityError`` if there are too many viewers for one more, or the process is about to stop."""
        if self._is_closed:
            raise CapacityError("The proxy is shutting down.", code="shutting_down", retry_after_seconds=1)
        others = sum(not seat.audience.is_operators for seat in self._seats)
        if len(self._seats) >= MOST_VIEWERS or (others >= MOST_OTHERS and not audience.is_operators):
            message = "The dashboard has too many viewers already. Close one of its pages."
            raise CapacityError(message, code="too_many_viewers", retry_after_seconds=5)

    def open(self, audience: Audience) -> Seat:
        """A seat for a viewer, who must leave it at the end."""
        seat = Seat(audience)
        self._seats.add(seat)
        if self._is_closed:
            seat.end()
        elif self._frames is not None:
            seat.offer(self._frames)
        self._has_viewers.set()
        return seat

    def leave(self, seat: Seat) -> None:
        """The viewer has gone."""
        self._seats.discard(seat)
        if not self._seats:
            self._has_viewers.clear()
            self._frames = self._shown = None

    def close(self) -> None:
        """End all feeds, because the process is about to stop."""
        self._is_closed = True
        for seat in self._seats:
            seat.end()

    async def run(self) -> None:
        """Make a snapshot a second while there are viewers, until cancelled."""
        clock = asyncio.get_running_loop().time
        while True:
            await self._has_viewers.wait()
            began_at = clock()
            await self._tick()
            await asyncio.sleep(max(0.0, began_at + self._tick_seconds - clock()))

    async def _tick(self) -> None:
        shows_rows = any(seat.audience.is_operators for seat in self._seats)
        moment = await self._reporter.moment(with_requests=shows_rows)
        if not self._seats:
            return
        self._frames = frames = _Frames(next(self._numbers), moment, self._shown)
        self._shown = moment
        for seat in list(self._seats):
            seat.offer(frames)
