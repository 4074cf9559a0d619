"""``inference-proxy fleet``: checks fleet files, and prints their JSON schema."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from inference_engine_proxy_server.cli.console import Subparsers, complain, load, show
from inference_engine_proxy_server.config.fleet_form import fleet_file_schema
from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.config.sources import CONFIG_FILE_ORIGIN

__all__ = ["add_parser"]


def add_parser(commands: Subparsers) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("fleet", help="check a fleet file, the file that CONFIG_FILE names")
    fleet_commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = fleet_commands.add_parser("check", help="check whether a file can be used in the current environment")
    check.add_argument("file", metavar="FILE", type=Path)
    check.set_defaults(command=_check)
    schema = fleet_commands.add_parser("schema", help="print the JSON schema of the file, for editors")
    schema.set_defaults(command=_schema)


def _check(arguments: argparse.Namespace) -> int:
    loaded = load({"CONFIG_FILE": str(arguments.file)}, backends_required=False)
    from inference_engine_proxy_server.backends.registry import discover_engines
    from inference_engine_proxy_server.fleet.fleet_updater import UnknownEngineError, check_engines

    fleet = loaded.configuration.fleet + loaded.configuration.lookups
    try:
        check_engines(fleet, discover_engines())
    except UnknownEngineError as error:
        complain(str(error))
        return 2
    for backend in fleet:
        show(f"{backend.name}  {backend.url}")
    for name, model in loaded.configuration.models.items():
        if model.serves_as is not None:
            show(f"{name}  serves as {model.serves_as}")
        if model.aliases:
            show(f"{name}  also {', '.join(model.aliases)}")
    settings = sorted(name for name, origin in loaded.origins.items() if origin == CONFIG_FILE_ORIGIN)
    show(f"{arguments.file} is valid; it sets {', '.join(settings) or 'no settings'}")
    return 0


def _schema(_arguments: argparse.Namespace) -> int:
    show(json.dumps(fleet_file_schema(Settings), indent=2))
    return 0
