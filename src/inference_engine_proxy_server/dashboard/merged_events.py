"""The events of all workers as one sequence."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from inference_engine_proxy_server.dashboard.worker_part import WorkerPart
from inference_engine_proxy_server.telemetry.journal import Event

__all__ = ["MergedEvent", "MergedEvents"]

_KEPT = 1000
_SEEN_BY_ALL = frozenset({"state", "drain", "reload"})  # each worker notes the same
_TOGETHER_SECONDS = 10.0  # between the notes of two workers about the same


class MergedEvent:
    """One event, as one or several workers noted it.

    Attributes:
        id: in the order of the sequence.
        event: as the worker that noticed it first notes it.
        changed: number of the latest change of the sequence that changed it.
    """

    __slots__ = ("_counts", "changed", "event", "id")

    def __init__(self, number: int, event: Event) -> None:
        self.id = number
        self.event = event
        self.changed = 0
        self._counts: dict[int, int] = {}

    @property
    def count(self) -> int:
        """How often it happened."""
        counts = self._counts.values()
        return max(counts) if self.event.kind in _SEEN_BY_ALL else sum(counts)

    def take(self, worker: int, event: Event) -> None:
        """Adopt what ``worker`` notes about it now."""
        self._counts[worker] = event.count
        if event.at >= self.event.at:
            self.event = event

    def is_noted_by(self, worker: int) -> bool:
        """Whether ``worker`` has noted it."""
        return worker in self._counts


class MergedEvents:
    """Merges the events of all workers.

    Attributes:
        changed: number of changes so far.
    """

    def __init__(self) -> None:
        self._events: deque[MergedEvent] = deque(maxlen=_KEPT)
        self._by_note: dict[tuple[int, str, int], MergedEvent] = {}
        self._last_id = 0
        self.changed = 0

    def take(self, parts: Iterable[WorkerPart]) -> None:
        """Add the new events of all workers, in the order of their times."""
        notes = [(event, part) for part in parts for event in part.events]
        if not notes:
            return
        self.changed += 1
        for event, part in sorted(notes, key=lambda note: note[0].first_at):
            note = (part.worker, part.journal.process, event.id)
            merged = self._by_note.get(note) or self._same(event, part.worker) or self._new(event)
            self._by_note[note] = merged
            merged.take(part.worker, event)
            merged.changed = self.changed
        if len(self._by_note) > 4 * _KEPT:
            kept = set(self._events)
            self._by_note = {note: merged for note, merged in self._by_note.items() if merged in kept}

    def since(self, changed: int) -> list[MergedEvent]:
        """The events that have changed after the change number ``changed``."""
        return [event for event in self._events if event.changed > changed] if changed < self.changed else []

    def latest(self, most: int) -> list[MergedEvent]:
        """The latest events, at most this many."""
        return list(self._events)[-most:]

    def _new(self, event: Event) -> MergedEvent:
        self._last_id += 1
        merged = MergedEvent(self._last_id, event)
        self._events.append(merged)
        return merged

    def _same(self, event: Event, worker: int) -> MergedEvent | None:
        """The same event as another worker has noted it; ``None`` if there is none."""
        if event.kind not in _SEEN_BY_ALL:
            return None
        for merged in reversed(self._events):
            other = merged.event
            if abs(other.first_at - event.first_at) > _TOGETHER_SECONDS:
                continue
            is_same = (other.kind, other.backend, other.like) == (event.kind, event.backend, event.like)
            if is_same and not merged.is_noted_by(worker):
                return merged
        return None
