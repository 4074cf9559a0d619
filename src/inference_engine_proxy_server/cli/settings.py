"""``inference-proxy settings``: shows every setting, its value and its source."""

from __future__ import annotations

import argparse
import json

from inference_engine_proxy_server.cli.console import Subparsers, load, show
from inference_engine_proxy_server.config.settings import Settings, as_variable
from inference_engine_proxy_server.config.sources import LoadedSettings

__all__ = ["add_parser"]


def add_parser(commands: Subparsers) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("settings", help="show every setting, its value and its source")
    parser.add_argument("--json", action="store_true", help="as one JSON object, with descriptions")
    parser.set_defaults(command=_settings)


def _settings(arguments: argparse.Namespace) -> int:
    loaded = load({}, backends_required=False)
    show(_as_json(loaded) if arguments.json else _as_table(loaded))
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
    """Columns for name, source and value; each item of a list has its own line."""
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
