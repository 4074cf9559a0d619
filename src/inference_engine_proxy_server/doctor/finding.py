"""What the doctor finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

__all__ = ["Finding", "Severity"]


class Severity(Enum):
    """How much a finding matters."""

    ERROR = "error"
    """Requests fail, or will fail."""
    WARNING = "warning"
    """The proxy works, but worse than it could, or will fail later."""
    NOTE = "note"
    """Worth knowing. The exit code does not count it."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to change.

    Attributes:
        code: names the kind of finding; documented in ``docs/doctor.md``.
        severity: how much it matters.
        subject: what it is about, such as ``backend llm-1:8080`` or ``QUEUE_TIMEOUT_SECONDS``.
        problem: one sentence about what is wrong.
        remedy: one sentence about what to do.
    """

    code: str
    severity: Severity
    subject: str
    problem: str
    remedy: str

    def as_json(self) -> Mapping[str, Any]:
        """The finding as a JSON object."""
        return {**asdict(self), "severity": self.severity.value}
