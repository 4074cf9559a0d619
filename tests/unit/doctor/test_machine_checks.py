"""Findings about the machine, in processes whose limits are set."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """\
import resource, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.doctor.machine_checks import check_machine
print(*(finding.code for finding in check_machine(Settings(workers=int(sys.argv[2])))))
"""


def found(files: int, workers: int) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(files), str(workers)], check=True, capture_output=True, text=True
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    ("files", "workers", "codes"),
    [(4095, 1, ["open_file_limit"]), (4096, 1, []), (4096, 64, ["more_workers_than_cores"])],
)
def test_limits(files: int, workers: int, codes: list[str]) -> None:
    assert len(os.sched_getaffinity(0)) < 64
    assert found(files, workers) == codes
