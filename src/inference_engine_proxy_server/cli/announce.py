"""``inference-proxy announce``: lets an engine join the fleets of proxies while it runs."""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inference_engine_proxy_server.cli.console import Subparsers, complain, load
from inference_engine_proxy_server.config.added_backends import (
    AnnouncedEntry,
    DescriptionError,
    as_written,
    described_backend,
)

if TYPE_CHECKING:  # not imported for the help text
    from inference_engine_proxy_server.announce.session import Membership

__all__ = ["add_parser"]

_MISSING = "--mdns needs a package that is not installed: pip install 'inference-engine-proxy-server[mdns]'"
_LEASES = 3  # announcements that may be lost before the backend leaves
_DESCRIPTION = (
    "Announces an engine to one or several proxies until SIGTERM or SIGINT. Then the engine leaves their fleets, and "
    "the command ends once the engine has no request of theirs, so that it can be stopped. Exit code: 0 if that "
    "succeeded, 1 if not, 2 if the arguments are wrong or no proxy accepts them; an engine that was started "
    "here and ends by itself determines it. The key is the proxies' ANNOUNCE_KEY, from the environment or .env."
)


def add_parser(commands: Subparsers) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("announce", help="let an engine join the fleets of proxies", description=_DESCRIPTION)
    parser.add_argument(
        "--proxy", metavar="URL", action="append", default=[], help="base URL of a proxy; may be repeated"
    )
    parser.add_argument("--backend", metavar="URL", required=True, help="base URL of the engine, as proxies reach it")
    parser.add_argument("--name", help="name of the backend; default: host and port")
    parser.add_argument("--engine", help="name of its engine, such as llamacpp or vllm; default: detected")
    parser.add_argument("--tier", type=int, help="its tier; default: 1")
    parser.add_argument("--weight", type=float, help="its share relative to others; default: 1")
    parser.add_argument("--capacity", type=int, metavar="SLOTS", help="requests that it works on at a time")
    parser.add_argument("--models", metavar="NAME[,NAME...]", help="models that it serves; default: as it reports")
    parser.add_argument(
        "--backend-key-env", metavar="VARIABLE", help="environment variable with the engine's own API key"
    )
    parser.add_argument("--key-file", metavar="FILE", help="file with the ANNOUNCE_KEY of the proxies")
    parser.add_argument(
        "--interval", type=float, default=5.0, metavar="SECONDS", help="between announcements; default: 5"
    )
    parser.add_argument(
        "--drain",
        type=float,
        default=300.0,
        metavar="SECONDS",
        help="longest wait for its requests to end; default: 300",
    )
    parser.add_argument(
        "--mdns",
        nargs="?",
        const="",
        metavar="ADDRESS",
        help="publish it in the local network; on all interfaces, or one",
    )
    parser.add_argument(
        "command_line", nargs="*", metavar="-- COMMAND", help="starts the engine, and stops it at the end"
    )
    parser.set_defaults(command=_announce)


def _announce(arguments: argparse.Namespace) -> int:
    settings = load({}, backends_required=False, warn=None).settings
    from inference_engine_proxy_server.announce.session import Session
    from inference_engine_proxy_server.telemetry.logs import configure_logging

    try:
        entry = as_written(described_backend(_description(arguments), AnnouncedEntry))
        memberships = _memberships(arguments, entry, _key(arguments, settings))
    except (DescriptionError, ValueError) as error:
        complain(str(error))
        return 2
    configure_logging(settings.log_level, settings.log_format)

    async def run() -> int:
        return await Session(memberships, arguments.command_line, arguments.drain).run()

    return asyncio.run(run())


def _memberships(arguments: argparse.Namespace, entry: dict[str, Any], key: str | None) -> list[Membership]:
    """One for each proxy; raises ``ValueError`` if the arguments contradict each other."""
    from inference_engine_proxy_server.announce.announcement import Announcement, ProxyAddress
    from inference_engine_proxy_server.announce.announcer import Announcer

    if not 0.2 <= arguments.interval <= 1200:
        raise ValueError("--interval must be from 0.2 to 1200 seconds")
    if not 0 <= arguments.drain <= 86_400:
        raise ValueError("--drain must be from 0 to 86400 seconds")
    memberships: list[Membership] = [] if arguments.mdns is None else [_publisher(entry, arguments.mdns)]
    if not arguments.proxy and not memberships:
        raise ValueError("--proxy is missing: give the base URL of each proxy, or --mdns")
    if arguments.proxy and key is None:
        raise ValueError("ANNOUNCE_KEY is not set: set it to the ANNOUNCE_KEY of the proxies, or give --key-file")
    announcement = Announcement(entry, max(1.0, _LEASES * arguments.interval))
    proxies = [ProxyAddress(url, key or "") for url in dict.fromkeys(arguments.proxy)]
    return [*memberships, *(Announcer(proxy, announcement, arguments.interval) for proxy in proxies)]


def _publisher(entry: dict[str, Any], interface: str) -> Membership:
    """What publishes the backend; raises ``ValueError`` if that is not possible."""
    if importlib.util.find_spec("zeroconf") is None:
        raise ValueError(_MISSING)
    from inference_engine_proxy_server.announce.mdns import MdnsPublisher, NotPublishableError

    try:
        return MdnsPublisher(entry, interface)
    except NotPublishableError as error:
        raise ValueError(str(error)) from None


def _description(arguments: argparse.Namespace) -> dict[str, Any]:
    """The backend, as an announcement describes it; raises ``ValueError`` if its key is missing."""
    described = {
        "url": arguments.backend,
        "name": arguments.name,
        "engine": arguments.engine,
        "tier": arguments.tier,
        "weight": arguments.weight,
        "capacity": arguments.capacity,
        "models": arguments.models and [name.strip() for name in arguments.models.split(",")],
    }
    if arguments.backend_key_env is not None:
        described["api_key"] = os.environ.get(arguments.backend_key_env)
        if not described["api_key"]:
            raise ValueError(f"--backend-key-env: the environment variable {arguments.backend_key_env} is not set")
    return {name: value for name, value in described.items() if value is not None}


def _key(arguments: argparse.Namespace, settings: Any) -> str | None:
    if arguments.key_file is None:
        return None if settings.announce_key is None else str(settings.announce_key.get_secret_value())
    try:
        key = Path(arguments.key_file).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ValueError(f"--key-file {arguments.key_file}: {reason}") from None
    if not key:
        raise ValueError(f"--key-file {arguments.key_file}: it is empty")
    return key
