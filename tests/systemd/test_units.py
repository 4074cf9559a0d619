"""The unit files are valid, and expose little."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from systemd.machine import UNITS

PAGE = (Path(__file__).parents[2] / "docs/systemd.md").read_text()
PROGRAM = "/opt/inference-proxy/current/bin/inference-proxy"
SERVICES = ("inference-proxy.service", "inference-proxy@.service")


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """Copies whose program exists on every machine."""
    folder = tmp_path / "units"
    shutil.copytree(UNITS, folder)
    for path in folder.iterdir():
        path.write_text(path.read_text().replace(PROGRAM, "/bin/true"))
    return folder


def test_all_units_are_valid(units: Path) -> None:
    paths = sorted(map(str, units.iterdir()))
    assert len(paths) == 4
    done = subprocess.run(["systemd-analyze", "verify", *paths], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_verification_would_find_a_mistake(units: Path) -> None:
    unit = units / SERVICES[0]
    unit.write_text(unit.read_text().replace("WatchdogSec=", "WatchDogSec="))
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    assert "Unknown key 'WatchDogSec'" in done.stderr


@pytest.mark.parametrize("name", SERVICES)
def test_exposure_is_what_the_documentation_says(units: Path, name: str) -> None:
    command = ["systemd-analyze", "security", "--offline=yes", "--threshold=20", str(units / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    found = re.search(r"Overall exposure level for \S+: (\S+) OK", done.stdout)
    assert found is not None, done.stdout
    assert f"exposure level of {found[1]} " in PAGE


def test_the_template_differs_only_in_the_name_of_the_instance() -> None:
    one, template = ((UNITS / name).read_text().splitlines() for name in SERVICES)
    for mine, other in zip(one[1:], template[1:], strict=True):
        plain = other.replace("/%i", "").replace("proxy %i in", "proxy in").replace("@NAME", "")
        assert plain == mine
