"""The vocabulary of health: states, their causes, and the rules that evidence is weighed by."""

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
    """It reports so itself."""
    SUSPENDED = "suspended"
    PAUSED = "paused"
    """It asked for no requests for some time (``Retry-After``)."""
    SILENT = "silent"
    """It did not answer the latest poll, but is still taken to be alive."""


@dataclass(frozen=True, slots=True)
class HealthRules:
    """How evidence is weighed; times in seconds.

    Attributes:
        evidence_seconds: how long a proof that a backend is alive counts.
        suspect_after_seconds: how long work may stand still.
        slow_start_seconds: how long a backend that failed takes to get back to its full share; 0: it gets it at once.
    """

    evidence_seconds: float
    suspect_after_seconds: float
    slow_start_seconds: float
