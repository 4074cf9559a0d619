"""How an exchange ended."""

from __future__ import annotations

from enum import StrEnum

__all__ = ["CLIENT_GONE", "Outcome"]

CLIENT_GONE = 499
"""Status of a request whose client disconnected before the reply, in logs and metrics only (nginx's number)."""


class Outcome(StrEnum):
    """How an exchange ended."""

    COMPLETE = "complete"
    BROKEN = "broken"
    """The reply had begun and could not be finished."""
    CLIENT_LEFT = "client_left"
