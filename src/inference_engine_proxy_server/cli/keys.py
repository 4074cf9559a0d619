"""``inference-proxy keys``: creates API keys for clients."""

from __future__ import annotations

import argparse

from inference_engine_proxy_server.cli.console import Subparsers, complain, show
from inference_engine_proxy_server.config.api_keys import ApiKey, digest_of, new_secret, valid_name

__all__ = ["add_parser"]


def add_parser(commands: Subparsers) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("keys", help="create API keys for clients")
    keys_commands = parser.add_subparsers(required=True, metavar="COMMAND")
    new = keys_commands.add_parser("new", help="create a key; nothing is stored")
    new.add_argument("name", metavar="NAME", help="of letters, digits, '.', '_' and '-'")
    new.set_defaults(command=_new)


def _new(arguments: argparse.Namespace) -> int:
    try:
        name = valid_name(arguments.name)
    except ValueError as error:
        complain(f"NAME is {arguments.name!r}: it {error}")
        return 2
    secret = new_secret()
    key = ApiKey(name, digest_of(secret.encode()))
    show(f"The secret, for the client; it is shown only once:\n\n{secret}\n")
    show(f"For API_KEYS_FILE, below `keys:` (or API_KEYS={key.name}:SECRET):\n")
    show(f"  - name: {key.name}\n    sha256: {key.digest.hex()}")
    return 0
