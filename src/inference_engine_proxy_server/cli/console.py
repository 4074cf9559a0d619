"""Shared parts of the subcommands: output, loading of settings, and options."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from inference_engine_proxy_server.config.sources import ENV_FILE, LoadedSettings, load_settings

__all__ = ["StrictParser", "Subparsers", "address_options", "complain", "load", "show"]

Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001 - has no public name
"""The result of ``add_subparsers``."""


class StrictParser(argparse.ArgumentParser):
    """A parser that rejects abbreviated options, whose meaning could change with the next version."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})


def show(text: str) -> None:
    """Write a line to stdout."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def complain(text: str) -> None:
    """Write a line to stderr."""
    sys.stderr.write(f"{text}\n")


def load(
    command_line: Mapping[str, str | None],
    *,
    backends_required: bool,
    warn: Callable[[str], None] | None = complain,
) -> LoadedSettings:
    """Load the settings, and report their warnings.

    Args:
        command_line: values by variable name; ``None`` for options that are not given.
        backends_required: at least one backend must be configured.
        warn: called with each warning; by default, it is written to stderr; ``None`` reports none.
    """
    given = {name: value for name, value in command_line.items() if value is not None}
    loaded = load_settings(os.environ, ENV_FILE, command_line=given, backends_required=backends_required)
    if warn is not None:
        for warning in loaded.warnings:
            warn(warning)
    return loaded


def address_options() -> argparse.ArgumentParser:
    """A parent parser with the options of every command that listens."""
    parser = StrictParser(add_help=False)
    parser.add_argument("--port", help="port to listen on, 0 for a free one; overrides PORT")
    parser.add_argument("--host", help="address to listen on; overrides HOST")
    return parser
