"""``inference-proxy demo``: runs the proxy in front of two real engines on the CPU."""

from __future__ import annotations

import argparse

from inference_engine_proxy_server.cli.console import Subparsers, address_options, complain, load, show
from inference_engine_proxy_server.config.configuration import Configuration

__all__ = ["add_parser"]


def add_parser(commands: Subparsers) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "demo",
        parents=[address_options()],
        help="run the proxy in front of two small real LLM engines on this machine's CPU",
        description="Starts two llama.cpp servers with a small real model on the CPU, and the proxy in front of them. "
        "BACKENDS and WORKERS are ignored.",
    )
    parser.set_defaults(command=_demo)


def _demo(arguments: argparse.Namespace) -> int:
    loaded = load({"PORT": arguments.port, "HOST": arguments.host}, backends_required=False, warn=None)
    from inference_engine_proxy_server.demo import DemoUnavailable, curl_line, demo_fleet
    from inference_engine_proxy_server.processes.ports import listen
    from inference_engine_proxy_server.server import run

    def announce(base_url: str) -> None:
        show(f"\nThe proxy listens at {base_url}\nDashboard: {base_url}/\n")
        show(f"Talk to the model:\n\n{curl_line(base_url)}\n\nCtrl-C stops the proxy and both engines.")

    try:
        listen("PORT", loaded.settings.host, loaded.settings.port).close()  # the engines need seconds to load
    except OSError as error:
        complain(str(error))
        return 1
    try:
        with demo_fleet(show) as backends:
            settings = loaded.settings.model_copy(update={"backends": tuple(backends), "workers": 1})
            given = loaded.configuration
            configuration = Configuration.of(settings, given.fleet, given.models, given.default_model, given.origins)
            return run(configuration, announce, warnings=loaded.warnings)
    except DemoUnavailable as error:
        complain(str(error))
        return 1
