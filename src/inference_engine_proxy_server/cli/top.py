"""``inference-proxy top``: shows a running proxy in the terminal."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from inference_engine_proxy_server.cli.console import Subparsers, complain, load, show
from inference_engine_proxy_server.config.settings import Settings

if TYPE_CHECKING:  # not imported for the help text
    from inference_engine_proxy_server.top.client import ProxyClient

__all__ = ["add_parser"]

_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - nothing is bound to them here
_MISSING = (
    "inference-proxy top needs Textual: pip install 'inference-engine-proxy-server[top]'; "
    "inference-proxy top --once works without it"
)


def add_parser(commands: Subparsers) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "top",
        help="show backends, live requests and events of a running proxy",
        description="Shows what the page of a running proxy shows. Keys: 1, 2 and 3 for backends, requests and "
        "events; s sorts, / filters, d and u drain and undrain a backend, c cancels a request, q quits.",
    )
    parser.add_argument("--url", help="base URL of the proxy; default: by HOST and PORT, or ADMIN_PORT if that is set")
    parser.add_argument("--admin-key", metavar="KEY", help="its ADMIN_KEY; default: that of the environment or of .env")
    parser.add_argument("--once", action="store_true", help="print one snapshot as text, and end")
    parser.add_argument("--json", action="store_true", help="with --once: print it as JSON (docs/dashboard.md)")
    parser.set_defaults(command=_top)


def _top(arguments: argparse.Namespace) -> int:
    if arguments.json and not arguments.once:
        complain("--json needs --once")
        return 2
    settings = load({}, backends_required=False, warn=None).settings
    url = arguments.url or _url_of(settings)
    if url is None:
        complain("PORT is 0, so the port of the proxy is not known: give its base URL with --url")
        return 2
    key: str | None = arguments.admin_key
    if key is None and settings.admin_key is not None:
        key = settings.admin_key.get_secret_value()
    from inference_engine_proxy_server.top.client import ProxyClient

    try:
        client = ProxyClient(url, key)
    except ValueError as error:
        complain(f"--url: {error}")
        return 2
    return _show_once(client, as_json=arguments.json) if arguments.once else _follow(client)


def _show_once(client: ProxyClient, *, as_json: bool) -> int:
    from inference_engine_proxy_server.top.client import Refused, Unreachable
    from inference_engine_proxy_server.top.plain import as_text

    try:
        snapshot = client.snapshot()
    except (Unreachable, Refused) as error:
        complain(str(error))
        return 1
    show(json.dumps(snapshot, indent=2) if as_json else as_text(snapshot))
    return 0


def _follow(client: ProxyClient) -> int:
    try:
        from inference_engine_proxy_server.top.app import TopApp
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("textual", "rich"):
            raise
        complain(_MISSING)
        return 1
    return TopApp(client).run() or 0


def _url_of(settings: Settings) -> str | None:
    """The base URL of a proxy with these settings on this machine; ``None`` if its port is not known."""
    port = settings.port if settings.admin_port is None else settings.admin_port
    if not port:
        return None
    host = _EVERY_ADDRESS.get(settings.host, settings.host)
    scheme = "http" if settings.tls_cert_file is None else "https"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
