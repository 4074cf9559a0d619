"""``inference-proxy serve``: runs the proxy."""

from __future__ import annotations

import argparse
import logging
import os
import sys

from inference_engine_proxy_server.cli.console import Subparsers, address_options, load
from inference_engine_proxy_server.doctor.examination import examine_locally
from inference_engine_proxy_server.doctor.finding import Severity

__all__ = ["add_parser"]

logger = logging.getLogger(__name__)


def add_parser(commands: Subparsers) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("serve", parents=[address_options()], help="run the proxy in front of BACKENDS")
    parser.add_argument(
        "--backends", metavar="URL[,URL...]", help="base URLs of the engine servers; overrides BACKENDS"
    )
    parser.set_defaults(command=_serve)


def _serve(arguments: argparse.Namespace) -> int:
    command_line = {"PORT": arguments.port, "HOST": arguments.host, "BACKENDS": arguments.backends}
    loaded = load(command_line, backends_required=True, warn=None)  # the server logs the warnings
    from inference_engine_proxy_server.server import run

    findings = [finding for finding in examine_locally(loaded) if finding.severity is not Severity.NOTE]
    return run(
        loaded.configuration,
        load=lambda: load(command_line, backends_required=True, warn=_log).configuration,
        warnings=(*loaded.warnings, *(f"{one.subject}: {one.problem} {one.remedy}" for one in findings)),
        command=_own_command(),
    )


def _own_command() -> list[str]:
    """The command that started this process. An installed script runs as such: it names the interpreter to use now."""
    script, *given = sys.argv
    if script in sys.orig_argv and os.access(script, os.X_OK):
        return [script, *given]
    return list(sys.orig_argv)


def _log(warning: str) -> None:
    logger.warning("settings: %s", warning)
