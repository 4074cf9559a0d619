"""Each README command is tested, and both languages have the same ones. `scripts/test.sh installation` runs them."""

from __future__ import annotations

from support.readme import ASK, CHINESE, COPY_SETTINGS, INSTALL, README, RUN, SERVE, commands

RUN_ELSEWHERE = {
    "docker compose -f docker-compose.llamacpp.yml up -d --build",  # no Docker here: see test_compose.py
    "scripts/test.sh",  # runs this very test
}


def test_every_command_is_run_by_a_test() -> None:
    assert set(commands(README)) <= {RUN, ASK, COPY_SETTINGS, INSTALL, SERVE, *RUN_ELSEWHERE}


def test_both_languages_have_the_same_commands_and_code() -> None:
    assert commands(CHINESE) == commands(README)
