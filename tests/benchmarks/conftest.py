"""Puts the benchmarks, which are separate programs outside the package, on the path to test their pure parts."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
