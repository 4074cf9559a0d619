"""Values of command-line options."""

from __future__ import annotations

from simulation.catalogue import TRACES
from simulation.trace import Trace

__all__ = ["numbers", "traces_named"]


def numbers(option: str, text: str) -> list[int]:
    """Positive numbers, separated by commas. Raises ValueError for anything else."""
    if not all(part.isdecimal() and int(part) for part in text.split(",")):
        raise ValueError(f"{option} takes positive numbers, separated by commas, not {text!r}")
    return [int(part) for part in text.split(",")]


def traces_named(text: str) -> list[Trace]:
    """Traces of the catalogue, given by their names, separated by commas. Raises ValueError for an unknown name."""
    unknown = [name for name in text.split(",") if name not in TRACES]
    if unknown:
        raise ValueError(f"unknown trace {', '.join(unknown)}: known are {', '.join(TRACES)}")
    return [TRACES[name] for name in text.split(",")]
