"""The types of health: states, their causes, and the rules by which evidence is judged."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["Cause", "Health", "HealthRules"]


class Health(Enum):
    """State of a backend."""

    STARTING = "starting"
    UP = "up"
    BUSY = "busy"
    SUSPECT = "suspect"
    DOWN = "down"

    @property
    def is_well(self) -> bool:
        """Whether the backend works and is trusted."""
        return self in (Health.UP, Health.BUSY)


class Cause(Enum):
    """Why a backend is in its state."""

    NONE = "none"
    """It is up."""
    LOST = "lost"
    """It refused or broke connections, or was silent for too long, and has not answered a poll since."""
    REPORTED = "reported"
    """The backend reports its state itself."""
    SUSPENDED = "suspended"
    PAUSED = "paused"
    """It asked for a pause (``Retry-After``)."""
    SILENT = "silent"
    """It did not answer the latest poll, but is still considered alive."""


@dataclass(frozen=True, slots=True)
class HealthRules:
    """How evidence is judged; times in seconds.

    Attributes:
        evidence_seconds: how long a sign of life counts.
        suspect_after_seconds: how long work may make no progress.
        slow_start_seconds: how long a backend that failed takes to get back to its full share; 0: no time.
    """

    evidence_seconds: float
    suspect_after_seconds: float
    slow_start_seconds: float
