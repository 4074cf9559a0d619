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
def test_limit_of_a_container(tmp_path: Path, groups: str, files: dict[str, str], limit: int | None) -> None:
    for name, content in {"proc/self/cgroup": groups + "\n", **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert container_limit_bytes(tmp_path) == limit


def test_processes_share_the_limit_of_their_container(tmp_path: Path) -> None:
    for name, content in {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "1000\n"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert container_limit_bytes(tmp_path, processes=4) == 250


def test_where_there_are_no_control_groups_there_is_no_limit(tmp_path: Path) -> None:
    assert container_limit_bytes(tmp_path) is None


def test_share_is_that_of_the_memory_that_is_really_in_use() -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    memory = MemoryUse(2 * peak)
    before = memory.share()
    assert 0 < before < 0.6
    block = bytearray(b"x") * 100_000_000
    assert memory.share() - before == pytest.approx(len(block) / (2 * peak), rel=0.2)


def test_without_a_limit_nothing_is_in_use() -> None:
    assert MemoryUse(None).share() == 0.0


def test_giving_back_does_no_harm() -> None:
    MemoryUse(None).give_back()
