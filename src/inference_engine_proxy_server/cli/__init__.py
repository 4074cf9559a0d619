"""The command ``inference-proxy``. Each subcommand is one module with a function ``add_parser``.

Exit codes: 0 success, 1 failure while running, 2 invalid arguments, settings, or files that settings name, 130
interrupted before the server was up. Requested output goes to stdout, problems and warnings go to stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from inference_engine_proxy_server import __version__
from inference_engine_proxy_server.cli import announce, demo, doctor, fleet, keys, serve, settings, top, usage
from inference_engine_proxy_server.cli.console import StrictParser, complain
from inference_engine_proxy_server.config.sources import SettingsError

__all__ = ["build_parser", "main"]

_COMMANDS = (serve, demo, announce, doctor, top, settings, keys, usage, fleet)  # in the order of the help text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that ``argv`` asks for, and return the exit code.

    Args:
        argv: arguments; ``None`` for those of the process.
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if "command" not in arguments:
        parser.print_help(sys.stderr)
        return 2
    try:
        return int(arguments.command(arguments))
    except SettingsError as error:
        complain(str(error))
        return 2
    except KeyboardInterrupt:  # only before the server is up: a running server handles it and returns 0
        return 130


def build_parser() -> StrictParser:
    """The parser of the whole command line."""
    parser = StrictParser(
        prog="inference-proxy",
        description="One OpenAI-compatible address in front of many LLM engine servers.",
        epilog="Settings come from the command line, the environment, the file .env in the working directory, the file "
        "that CONFIG_FILE names, or their defaults; the first value wins. `inference-proxy settings` shows them all.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in _COMMANDS:
        command.add_parser(commands)
    return parser
