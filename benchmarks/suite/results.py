"""Results of a run so far, in memory and in a JSON file that is complete after each step."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from load.generator import Report

__all__ = ["Failure", "Results", "read_results"]


@dataclass(frozen=True, slots=True)
class Failure:
    round: int
    step: str
    target: str
    error: str


@dataclass(slots=True)
class Results:
    """Reports of all rounds.

    Attributes:
        about: the machine, the run, and ``versions`` of the targets.
        reports: by step and target, one item per round; ``None`` for a missing report.
    """

    about: dict[str, Any]
    rounds: int
    reports: dict[str, dict[str, list[Report | None]]] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def add(self, round_number: int, step: str, target: str, report: Report) -> None:
        places = self.reports.setdefault(step, {}).setdefault(target, [None] * self.rounds)
        places[round_number] = report

    def write(self, file: Path, **derived: Any) -> None:
        """Write the file. ``derived``: values computed from the reports, for readers without this program."""
        whole = asdict(self) | derived
        unfinished = file.with_name(f"{file.name}.part")
        unfinished.write_text(json.dumps(whole, indent=1) + "\n")
        unfinished.replace(file)


def read_results(file: Path) -> Results:
    """Read a file written by ``Results.write``. Raises OSError, ValueError or KeyError for any other file."""
    read = json.loads(file.read_text())
    failures = [Failure(**failure) for failure in read["failures"]]
    return Results(read["about"], read["rounds"], read["reports"], failures)
