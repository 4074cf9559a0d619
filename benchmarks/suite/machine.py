"""Description of the machine and the versions of a run, without which its figures mean nothing."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import sysconfig
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from suite.targets import Target

__all__ = ["about"]


def about(targets: list[Target], *, pace: float) -> dict[str, Any]:
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "pace": pace,
        "commit": _commit(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "python_build": _python_build(),
        "versions": {target.name: target.proxy.version() for target in targets if target.proxy is not None},
    }


def _commit() -> str:
    """The measured commit; a trailing ``+`` marks uncommitted changes."""
    command = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _python_build() -> str:
    """Who built Python, and how: a build without profile-guided optimisation costs the proxy 10 to 20 % more CPU time.

    Debian's ``sysconfig`` does not name that option, although its builds have it.
    """
    if "--enable-optimizations" in str(sysconfig.get_config_var("CONFIG_ARGS")):
        build = "with profile-guided optimisation"
    elif Path(sys.executable).resolve().is_relative_to("/usr/bin"):
        build = "of the Linux distribution"
    else:
        build = "without profile-guided optimisation"
    return f"{build}, {platform.python_compiler()}"
