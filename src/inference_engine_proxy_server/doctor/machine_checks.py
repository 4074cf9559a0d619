"""What the machine allows."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.doctor.finding import Finding, Severity

__all__ = ["check_machine"]

_ENOUGH_FILES = 4096  # some 1,600 requests at a time, with two connections each


def check_machine(settings: Settings) -> Iterator[Finding]:
    """Findings about limits of this process, and the cores of the machine."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)  # the proxy raises its soft limit to the hard one
    if files != resource.RLIM_INFINITY and files < _ENOUGH_FILES:
        yield Finding(
            "open_file_limit",
            Severity.WARNING,
            "open files",
            f"The hard limit is {files}. Each request needs two, so about {files * 2 // 5} clients can connect.",
            "Raise it: LimitNOFILE= in a systemd unit, `ulimits: nofile` in Compose, or `ulimit -Hn` in a shell.",
        )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if settings.workers > cores:
        yield Finding(
            "more_workers_than_cores",
            Severity.WARNING,
            "WORKERS",
            f"{settings.workers} workers share {cores} {'core' if cores == 1 else 'cores'}, and slow each other down.",
            f"Set it to {cores} at most.",
        )
