"""The journal: the latest events that an operator should know of, each with its reason as a full sentence."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Literal

import msgspec

__all__ = ["BACKEND", "Event", "Journal", "Kind", "Severity"]

BACKEND = "{backend}"
"""Stands in the text of an event for the name of its backend, which not everyone may see."""

Kind = Literal["state", "drain", "move", "resume", "retry", "fallback", "rejection", "shed", "reload", "drift"]
Severity = Literal["info", "warning", "error"]

_KEPT = 1000  # events
_QUICK_SECONDS = 60.0  # an event that is repeated within this time is counted
_MOST_REMEMBERED = 256  # different events that may be repeated
_MOST_TEXT = 500  # characters


class Event(msgspec.Struct):
    """One event, or several alike in quick succession.

    Attributes:
        id: in the order of the first occurrences, from 1.
        at: the latest occurrence, in seconds since the epoch. first_at: the first one.
        kind: what happened.
        severity: how bad it is.
        backend: base URL of the backend that it happened to; ``None`` for none in particular.
        text: one sentence about the latest occurrence, with :data:`BACKEND` for the backend's name.
        count: how often it happened.
        like: what events of one kind and backend have in common that are counted as one.
        changed: number of the change of the journal that changed this event last.
    """

    id: int
    at: float
    first_at: float
    kind: Kind
    severity: Severity
    backend: str | None
    text: str
    count: int
    like: str
    changed: int


class Journal:
    """Keeps the latest events of one process.

    Args:
        now: seconds since the epoch.

    Attributes:
        changed: number of changes so far.
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._events: deque[Event] = deque(maxlen=_KEPT)
        self._recent: dict[tuple[Kind, str | None, str], Event] = {}
        self._last_id = 0
        self.changed = 0

    def __repr__(self) -> str:
        return f"<Journal of {len(self._events)} events>"

    def note(
        self, kind: Kind, text: str, *, severity: Severity = "info", backend: str | None = None, like: str = ""
    ) -> None:
        """Add an event, or count it if the same one has just happened.

        Args:
            kind: what happened.
            text: one sentence, with :data:`BACKEND` for the name of ``backend``.
            severity: how bad it is.
            backend: base URL of the backend that it happened to.
            like: events of one kind and backend with the same ``like`` are counted as one; by default, the text.
        """
        now = self._now()
        self.changed += 1
        like = like or text
        key = (kind, backend, like)
        event = self._recent.get(key)
        if event is not None and now - event.at < _QUICK_SECONDS:
            event.at, event.text, event.changed = now, text[:_MOST_TEXT], self.changed
            event.count += 1
            return
        self._last_id += 1
        event = Event(self._last_id, now, now, kind, severity, backend, text[:_MOST_TEXT], 1, like, self.changed)
        self._events.append(event)
        self._recent.pop(key, None)
        self._recent[key] = event
        if len(self._recent) > _MOST_REMEMBERED:
            del self._recent[next(iter(self._recent))]

    def since(self, changed: int = 0) -> list[Event]:
        """The events that have changed after the change number ``changed``, in the order of their first occurrences."""
        return [event for event in self._events if event.changed > changed] if changed < self.changed else []
