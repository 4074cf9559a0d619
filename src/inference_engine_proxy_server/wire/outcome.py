"""How an exchange ended."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["Outcome"]


class Outcome(StrEnum):
    """How an exchange ended."""

    COMPLETE = "complete"
    BROKEN = "broken"
    """The reply had begun and could not be finished."""
    CLIENT_LEFT = "client_left"
