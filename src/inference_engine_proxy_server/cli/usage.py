"""``inference-proxy usage``: shows the tokens that keys have used, from the usage file."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from inference_engine_proxy_server.cli.console import Subparsers, complain, load, show

__all__ = ["add_parser"]


def add_parser(commands: Subparsers) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "usage",
        help="show the tokens that keys have used, by day, key and model",
        description="Reads the file that USAGE_FILE names, whether or not the proxy runs. All times are in UTC.",
    )
    parser.add_argument("--file", metavar="FILE", help="read this file; overrides USAGE_FILE")
    parser.add_argument("--from", dest="since", metavar="TIME", help="a date or a time; default: 29 days ago")
    parser.add_argument("--to", metavar="TIME", help="a time, excluded, or the last date; default: now")
    parser.add_argument(
        "--by", metavar="GROUP[,GROUP...]", default="day,key,model", help="of month, day, hour, key and model"
    )
    parser.add_argument("--key", metavar="NAME", help="only this key")
    parser.add_argument("--model", metavar="NAME", help="only this model")
    parser.add_argument("--format", choices=("table", "json", "csv"), default="table")
    parser.set_defaults(command=_usage)


def _usage(arguments: argparse.Namespace) -> int:
    loaded = load({"USAGE_FILE": arguments.file}, backends_required=False)
    from inference_engine_proxy_server.usage.ledger_file import FILE_ERRORS, NotALedgerError
    from inference_engine_proxy_server.usage.query import QueryError, query_of, read_rows
    from inference_engine_proxy_server.usage.report import as_csv, as_json, as_table

    file = loaded.settings.usage_file
    if file is None:
        complain("USAGE_FILE is not set, so there is no usage to show; --file FILE names a file")
        return 2
    given = {"from": arguments.since, "to": arguments.to, "by": arguments.by}
    try:
        query = query_of(given | {"key": arguments.key, "model": arguments.model}, time.time())
        rows = read_rows(Path(file), query)
    except QueryError as error:
        complain(f"--{error}")
        return 2
    except (*FILE_ERRORS, NotALedgerError) as error:
        complain(f"{file} cannot be read: {error}")
        return 2 if isinstance(error, NotALedgerError) else 1
    if loaded.settings.state_url is not None:
        complain(f"{file} has the requests of one replica: the one that writes it")
    if arguments.format == "json":
        show(as_json(query, rows, {"covers": "replica"}).decode())
    elif arguments.format == "csv":
        show(as_csv(query, rows).rstrip("\r\n"))
    else:
        show(as_table(query, rows))
    return 0
