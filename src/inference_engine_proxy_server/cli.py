"""The command ``inference-proxy``: arguments -> settings -> the server.

Exit codes: 0 done, 1 it failed while running, 2 it was asked for wrongly (arguments or settings), 130 it was
interrupted before it was up. What a person asked for goes to stdout, problems and warnings to stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import __version__
from .config.api_keys import new_secret, parse_key
from .config.fleet_form import fleet_file_schema
from .config.settings import Settings, as_variable
from .config.sources import CONFIG_FILE_ORIGIN, LoadedSettings, SettingsError, load_settings

__all__ = ["main"]

_ENV_FILE = Path(".env")


def _print(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _complain(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _load(command_line: Mapping[str, str | None], *, backends_required: bool) -> LoadedSettings:
    given = {name: value for name, value in command_line.items() if value is not None}
    loaded = load_settings(os.environ, _ENV_FILE, command_line=given, backends_required=backends_required)
    for warning in loaded.warnings:
        _complain(warning)
    return loaded


def _serve(arguments: argparse.Namespace) -> int:
    command_line = {"PORT": arguments.port, "HOST": arguments.host, "BACKENDS": arguments.backends}
    loaded = _load(command_line, backends_required=True)
    from .server import run

    return run(loaded.settings, load=lambda: _load(command_line, backends_required=True).settings)


def _demo(arguments: argparse.Namespace) -> int:
    loaded = _load({"PORT": arguments.port, "HOST": arguments.host}, backends_required=False)
    from .demo import DemoUnavailable, curl_line, demo_fleet
    from .server import run

    def announce(base_url: str) -> None:
        _print(f"\nThe proxy listens at {base_url}\nDashboard: {base_url}/\n")
        _print(f"Talk to the model:\n\n{curl_line(base_url)}\n\nCtrl-C stops the proxy and both engines.")

    try:
        with demo_fleet(_print) as backends:
            return run(loaded.settings.model_copy(update={"backends": tuple(backends), "workers": 1}), announce)
    except DemoUnavailable as error:
        _complain(str(error))
        return 1


def _settings(arguments: argparse.Namespace) -> int:
    loaded = _load({}, backends_required=False)
    _print(_as_json(loaded) if arguments.json else _as_table(loaded))
    return 0


def _new_key(arguments: argparse.Namespace) -> int:
    secret = new_secret()
    try:
        key = parse_key(f"{arguments.name}:{secret}")
    except ValueError as error:
        _complain(f"{arguments.name!r}: {error}")
        return 2
    _print(f"The secret, for its holder; it is shown this once:\n\n{secret}\n")
    _print(f"For API_KEYS_FILE, below `keys:` (or API_KEYS={key.name}:SECRET):\n")
    _print(f"  - name: {key.name}\n    sha256: {key.digest.hex()}")
    return 0


def _fleet_schema(_arguments: argparse.Namespace) -> int:
    _print(json.dumps(fleet_file_schema(Settings), indent=2))
    return 0


def _check_fleet(arguments: argparse.Namespace) -> int:
    loaded = _load({"CONFIG_FILE": str(arguments.file)}, backends_required=False)
    from .backends.registry import discover_engines
    from .fleet.fleet_updater import UnknownEngineError, check_engines

    try:
        check_engines(loaded.settings.fleet, discover_engines())
    except UnknownEngineError as error:
        _complain(str(error))
        return 2
    for backend in loaded.settings.fleet:
        _print(f"{backend.name}  {backend.url}")
    settings = sorted(name for name, origin in loaded.origins.items() if origin == CONFIG_FILE_ORIGIN)
    _print(f"{arguments.file} can be used; it gives {', '.join(settings) or 'no settings'}")
    return 0


def _as_json(loaded: LoadedSettings) -> str:
    rows = {
        field.upper(): {
            "value": getattr(loaded.settings, field),
            "origin": loaded.origins[field.upper()],
            "description": definition.description,
        }
        for field, definition in Settings.model_fields.items()
    }
    return json.dumps(rows, indent=2, default=as_variable)


def _as_table(loaded: LoadedSettings) -> str:
    """Name, origin and value in columns; of a list, each item has a line."""
    rows = [("NAME", "FROM", "VALUE")]
    for field in Settings.model_fields:
        value = getattr(loaded.settings, field)
        first, *more = (
            [as_variable(item) for item in value] or ["(none)"] if isinstance(value, tuple) else [as_variable(value)]
        )
        rows.append((field.upper(), loaded.origins[field.upper()], first or "(not set)"))
        rows.extend(("", "", item) for item in more)
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"{name:{widths[0]}}  {origin:{widths[1]}}  {value}" for name, origin, value in rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="inference-proxy",
        description="One OpenAI-compatible address in front of many LLM engine servers.",
        epilog="Settings come from the command line, the environment, the file .env in the working directory, the file "
        "that CONFIG_FILE names, or their defaults, in this order. `inference-proxy settings` shows them all.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    address = argparse.ArgumentParser(add_help=False)
    address.add_argument("--port", help="port to listen on, 0 for a free one; goes before PORT")
    address.add_argument("--host", help="address to listen on; goes before HOST")

    serve = commands.add_parser("serve", parents=[address], help="run the proxy in front of BACKENDS")
    serve.add_argument(
        "--backends", metavar="URL[,URL...]", help="base URLs of the engine servers; goes before BACKENDS"
    )
    serve.set_defaults(command=_serve)

    demo = commands.add_parser(
        "demo",
        parents=[address],
        help="run the proxy in front of two small real LLM engines on this machine's CPU",
        description="Starts two llama.cpp servers with a small real model on the CPU, and the proxy in front of them. "
        "BACKENDS and WORKERS are not used.",
    )
    demo.set_defaults(command=_demo)

    settings = commands.add_parser("settings", help="show every setting, its value and where that comes from")
    settings.add_argument("--json", action="store_true", help="as one JSON object, with descriptions")
    settings.set_defaults(command=_settings)

    keys = commands.add_parser("keys", help="make keys of clients")
    new = keys.add_subparsers(required=True, metavar="COMMAND").add_parser(
        "new", help="make a secret; nothing is stored"
    )
    new.add_argument("name", metavar="NAME", help="of letters, digits, '.', '_' and '-'")
    new.set_defaults(command=_new_key)

    fleet = commands.add_parser("fleet", help="check a fleet file, which CONFIG_FILE names")
    fleet_commands = fleet.add_subparsers(required=True, metavar="COMMAND")
    check = fleet_commands.add_parser(
        "check", help="say whether a file can be used, with the environment as it is here"
    )
    check.add_argument("file", metavar="FILE", type=Path)
    check.set_defaults(command=_check_fleet)
    schema = fleet_commands.add_parser("schema", help="print the JSON schema of the file, for editors")
    schema.set_defaults(command=_fleet_schema)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that ``argv`` (default: the process's own arguments) asks for; gives the exit code."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if "command" not in arguments:
        parser.print_help(sys.stderr)
        return 2
    try:
        return int(arguments.command(arguments))
    except SettingsError as error:
        _complain(str(error))
        return 2
    except KeyboardInterrupt:  # the server ends by itself with 0; this is before it was up
        return 130
