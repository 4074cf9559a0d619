from __future__ import annotations

import resource
from pathlib import Path

import pytest

from inference_engine_proxy_server.overload.memory_use import MemoryUse, container_limit_bytes


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        ("0::/", {"sys/fs/cgroup/memory.max": "1073741824\n"}, 1073741824),
        ("0::/", {"sys/fs/cgroup/memory.max": "max\n"}, None),
        ("0::/", {}, None),
        ("0::/a/b", {"sys/fs/cgroup/a/b/memory.max": "max", "sys/fs/cgroup/a/memory.max": "500"}, 500),
        ("0::/a/b", {"sys/fs/cgroup/a/b/memory.max": "700", "sys/fs/cgroup/a/memory.max": "500"}, 500),
        ("0::/not/seen/from/here", {"sys/fs/cgroup/memory.max": "500"}, 500),
        ("5:cpu:/\n4:memory:/", {"sys/fs/cgroup/memory/memory.limit_in_bytes": "800\n"}, 800),
        ("4:memory:/a", {"sys/fs/cgroup/memory/a/memory.limit_in_bytes": "600"}, 600),
        ("4:cpu,memory:/", {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
    ],
)
def test_container_limit_is_the_lowest_limit_of_all_enclosing_groups(
    tmp_path: Path, groups: str, files: dict[str, str], limit: int | None
) -> None:
    for name, content in {"proc/self/cgroup": groups + "\n", **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert container_limit_bytes(tmp_path) == limit


def test_the_container_limit_is_divided_by_the_number_of_processes(tmp_path: Path) -> None:
    for name, content in {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1000\n"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert container_limit_bytes(tmp_path, processes=4) == 250


def test_there_is_no_limit_without_control_groups(tmp_path: Path) -> None:
    assert container_limit_bytes(tmp_path) is None


def test_share_is_resident_memory_divided_by_the_limit() -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    memory = MemoryUse(2 * peak)
    before = memory.share()
    assert 0 < before < 0.6
    block = bytearray(b"x") * 100_000_000
    assert memory.share() - before == pytest.approx(len(block) / (2 * peak), rel=0.2)


def test_share_is_zero_without_a_limit() -> None:
    assert MemoryUse(None).share() == 0.0


def test_trim_raises_no_error() -> None:
    MemoryUse(None).trim()
