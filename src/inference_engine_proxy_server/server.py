"""Runs the proxy: sockets, certificate, signals, and one or several processes."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import logging
import math
import os
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import cast

import uvicorn

from inference_engine_proxy_server import __version__
from inference_engine_proxy_server.backends.registry import discover_engines
from inference_engine_proxy_server.composition import build_proxy
from inference_engine_proxy_server.composition.joining import build_roster
from inference_engine_proxy_server.config.configuration import Configuration
from inference_engine_proxy_server.config.file_watch import FileWatch
from inference_engine_proxy_server.config.key_file import KeyFileError
from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.config.sources import SettingsError, settings_files
from inference_engine_proxy_server.config.tls_files import check_authorities, check_certificate
from inference_engine_proxy_server.fleet.fleet_updater import UnknownEngineError, check_engines
from inference_engine_proxy_server.processes.host import raise_file_limit
from inference_engine_proxy_server.processes.inherited_sockets import InheritedSockets
from inference_engine_proxy_server.processes.launch import Launch
from inference_engine_proxy_server.processes.ports import ACCEPT_BACKLOG, Port, announce, open_ports, url_of
from inference_engine_proxy_server.processes.process_context import SoleProcess, WorkerContext
from inference_engine_proxy_server.processes.sole_host import SoleHost
from inference_engine_proxy_server.processes.standing_commands import StandingCommands
from inference_engine_proxy_server.processes.supervisor import Supervisor
from inference_engine_proxy_server.processes.worker import Worker
from inference_engine_proxy_server.proxy import Proxy
from inference_engine_proxy_server.telemetry.logs import configure_logging

__all__ = ["run"]

_CONFIGURATION_ERRORS = (KeyFileError, SettingsError, UnknownEngineError)
_STARTUP_ERRORS = (*_CONFIGURATION_ERRORS, OSError)

logger = logging.getLogger(__name__)


def run(
    configuration: Configuration,
    on_started: Callable[[str], None] | None = None,
    load: Callable[[], Configuration] | None = None,
    warnings: Iterable[str] = (),
    command: Sequence[str] = (),
) -> int:
    """Serve until SIGINT or SIGTERM; afterwards these signals have no effect on this process.

    Args:
        configuration: with at least one backend.
        on_started: called with the proxy's base URL once it answers requests.
        load: reads the configuration again, to apply a changed fleet; ``None`` when it never changes.
        warnings: about the configuration; they are logged.
        command: starts the installed version, for SIGUSR2; empty if this program cannot be upgraded.

    Returns:
        The exit code of the process: 0 after a requested stop; 1 when a port is unavailable; 2 when HOST, a
        certificate, the key file, an engine in the fleet or an inherited socket is unusable.
    """
    settings = configuration.settings
    configure_logging(settings.log_level, settings.log_format)
    for warning in warnings:
        logger.warning("settings: %s", warning)
    raise_file_limit()
    # After it has stopped, uvicorn raises a caught signal again, which would terminate this process by that signal.
    # SIGHUP and SIGUSR2 must not terminate a process that is still starting.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, *((signal.SIGHUP,) if load is not None else ())):
        signal.signal(number, lambda *_: None)
    with ExitStack() as stack:
        try:
            check_certificate(settings.tls_cert_file, settings.tls_key_file)
            check_authorities(settings.backend_ca_file)
            launch = Launch.of(os.environ, os.getpid(), command)
            serve = _prepared(configuration, on_started, load, launch, stack)
        except _STARTUP_ERRORS as error:
            logger.error("%s", error)
            return 2 if isinstance(error, _CONFIGURATION_ERRORS) else 1
        _warn_of_open_port(settings, launch.inherited)
        if launch.manager.watchdog_seconds is not None:
            faulthandler.enable()  # the watchdog sends SIGABRT to a process that stands still: the log shows where
        return serve()


def _prepared(
    configuration: Configuration,
    on_started: Callable[[str], None] | None,
    load: Callable[[], Configuration] | None,
    launch: Launch,
    stack: ExitStack,
) -> Callable[[], int]:
    """Acquire all resources and return the function that serves; raises one of ``_STARTUP_ERRORS``."""
    settings = configuration.settings
    if settings.workers > 1:
        return make_supervisor(configuration, on_started, load, launch).run
    ports = open_ports(settings, launch.inherited)
    for port in ports:
        stack.callback(port.close, port.listeners(0))
    host = make_host(configuration, on_started, load, launch, ports)

    def serve() -> int:
        _exempt_from_collection()
        host.run(sockets=list(ports[0].listeners(0)))
        return 0

    return serve


def make_supervisor(
    configuration: Configuration,
    on_started: Callable[[str], None] | None,
    load: Callable[[], Configuration] | None,
    launch: Launch | None = None,
) -> Supervisor:
    """The supervisor of several workers; arguments as for :func:`run`."""
    if sys.platform != "linux":
        message = "WORKERS above 1 needs Linux, whose kernel spreads connections over several sockets of one port"
        raise SettingsError([message])
    settings, launch = configuration.settings, launch or Launch()
    ports = open_ports(settings, launch.inherited)
    build_proxy(configuration, load)  # reports errors before any worker starts
    is_tls = settings.tls_cert_file is not None

    def serve(context: WorkerContext) -> int:
        configure_logging(settings.log_level, settings.log_format, context.siblings.number)
        try:
            proxy = build_proxy(context.configuration, load, context)
        except _STARTUP_ERRORS as error:  # a file has become unusable since the start
            logger.error("%s", error)
            return 1
        _exempt_from_collection()
        Worker(_uvicorn_config(settings, proxy), proxy, context).run(sockets=list(context.listeners[0]))
        return 0

    def on_all_started() -> str:
        url, *operators_url = (url_of(port.address, is_tls=is_tls) for port in ports)
        announce(url, operators_url[0] if operators_url else None, on_started)
        return f"listening on {url} with {settings.workers} workers, version {__version__}"

    commands = _adopted_commands(StandingCommands(build_roster(settings, discover_engines())), launch)
    return Supervisor(
        configuration, ports, serve, _reloader(settings, load), on_all_started, commands, launch.manager,
        launch.predecessor, launch.command,
    )  # fmt: skip


def _adopted_commands(commands: StandingCommands, launch: Launch) -> StandingCommands:
    if launch.predecessor is not None:
        launch.predecessor.adopt_commands(commands)
    return commands


def _exempt_from_collection() -> None:
    """Let garbage collections leave out what exists now, and stays: they would block the event loop for 50 ms."""
    gc.collect()
    gc.freeze()


def _reloader(settings: Settings, load: Callable[[], Configuration] | None) -> Callable[[], Configuration | None]:
    """A function that returns the configuration if it is valid and has changed since the last call."""
    watch = FileWatch(settings_files(settings))

    def reload_if_changed() -> Configuration | None:
        if load is None or not watch.changed_completely():
            return None
        try:
            changed = load()
            check_engines(changed.fleet, discover_engines())
        except (SettingsError, UnknownEngineError):  # each worker logs it
            return None
        except Exception:  # must not terminate the supervisor, just as it does not terminate a worker
            logger.exception("the settings cannot be reloaded")
            return None
        return changed

    return reload_if_changed


def _warn_of_open_port(settings: Settings, inherited: InheritedSockets | None) -> None:
    for host in (settings.host,) if inherited is None else (one.getsockname()[0] for one in inherited.clients):
        is_loopback = host == "localhost" or host.startswith("127.") or host == "::1"
        if not is_loopback and not settings.api_keys and settings.api_keys_file is None:
            advice = "set API_KEYS, or check keys in a proxy in front"
            logger.warning("anyone who can reach HOST %s can use the engines: %s", host, advice)


def make_host(
    configuration: Configuration,
    on_started: Callable[[str], None] | None = None,
    load: Callable[[], Configuration] | None = None,
    launch: Launch | None = None,
    ports: Sequence[Port] = (),
) -> uvicorn.Server:
    """The server of a single process, ready to ``run`` or ``serve`` on given sockets.

    Args:
        configuration: with at least one backend.
        on_started: as for :func:`run`.
        load: as for :func:`run`.
        launch: how this program was started; ``None`` for a usual start.
        ports: PORT and, if set, ADMIN_PORT; empty without ADMIN_PORT, if the sockets are given only to ``run``.
    """
    settings, launch = configuration.settings, launch or Launch()
    process = SoleProcess(build_roster(settings, discover_engines()))
    _adopted_commands(process.commands, launch)
    proxy = build_proxy(configuration, load, process)
    return SoleHost(
        _uvicorn_config(settings, proxy), proxy, process, ports, on_started, launch, reloads=load is not None
    )


def _uvicorn_config(settings: Settings, proxy: Proxy) -> uvicorn.Config:
    return uvicorn.Config(
        proxy.app,
        http=cast(type[asyncio.Protocol], proxy.accept),
        ws="none",
        lifespan="on",
        log_config=None,
        proxy_headers=False,
        ssl_certfile=settings.tls_cert_file,
        ssl_keyfile=settings.tls_key_file,
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout_seconds),
        backlog=ACCEPT_BACKLOG,
    )
