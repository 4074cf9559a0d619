"""Proxies are configured for the given engines, and are measured in alternating order."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from proxies.proxy import Proxy, Site, free_ports
from suite.targets import TARGETS
from suite.turns import Turn, turns_of

CONFIGURATIONS = Path(__file__).parents[2] / "benchmarks" / "proxies" / "configurations"


@pytest.mark.parametrize("name", [file.name for file in CONFIGURATIONS.iterdir()])
def test_a_configuration_file_has_one_line_per_engine(name: str, tmp_path: Path) -> None:
    text = Site(tmp_path, 18_000, (18_001, 18_002, 18_003)).configured(name).read_text()

    assert [len(re.findall(rf"127\.0\.0\.1\D+{port}\b", text)) for port in (18_001, 18_002, 18_003)] == [1, 1, 1]
    assert not re.findall("@[A-Z]+@", text)


def test_starting_a_proxy_that_is_not_installed_raises_an_error(tmp_path: Path) -> None:
    proxy = Proxy("no-such-proxy", lambda _: [])

    assert proxy.path is None
    with pytest.raises(RuntimeError, match="not installed"):
        proxy.command(Site(tmp_path, 18_000, ()))


def test_ports_are_free_and_different() -> None:
    ports = free_ports(300)

    assert len(set(ports)) == 300
    assert max(ports) < 32_000


def test_each_step_measures_all_targets_in_reverse_order_every_second_round() -> None:
    ours, nginx = TARGETS["inference-proxy"], TARGETS["nginx"]

    turns = [_named(turn) for turn in turns_of(2, ["latency-1", "idle-streams"], [ours, nginx])]

    assert turns == [
        (0, "latency-1", "inference-proxy"),
        (0, "latency-1", "nginx"),
        (0, "idle-streams", "inference-proxy"),
        (0, "idle-streams", "nginx"),
        (1, "latency-1", "nginx"),
        (1, "latency-1", "inference-proxy"),
    ]


def _named(turn: Turn) -> tuple[int, str, str]:
    return turn.round, turn.step.name, turn.target.name
