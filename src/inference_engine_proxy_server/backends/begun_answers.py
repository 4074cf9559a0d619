"""What engines do with the beginning of an answer that they are asked to continue."""

from __future__ import annotations

from enum import Enum

__all__ = ["BegunAnswers"]


class BegunAnswers(Enum):
    """What a prompt has of the message that an engine is asked to continue."""

    KEPT = "kept"
    """All of it."""
    TRIMMED = "trimmed"
    """All but white space at its end, which many chat templates remove. The engine may then write it once more."""
    LOST = "lost"
    """Not its text at the end: the engine begins a new answer, or rejects the request."""
