"""The vocabulary of health: states, their causes, and the rules for weighing evidence."""

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
    """It reports the state itself."""
    SUSPENDED = "suspended"
    PAUSED = "paused"
    """It asked for a pause (``Retry-After``)."""
    SILENT = "silent"
    """It did not answer the latest poll, but is still considered alive."""


@dataclass(frozen=True, slots=True)
class HealthRules:
    """The rules for weighing evidence; times in seconds.

    Attributes:
        evidence_seconds: how long a proof that a backend is alive counts.
        suspect_after_seconds: how long work may make no progress.
        slow_start_seconds: time in which a recovered backend returns to its full share; 0 for at once.
    """

    evidence_seconds: float
    suspect_after_seconds: float
    slow_start_seconds: float
