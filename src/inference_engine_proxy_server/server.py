"""Runs the proxy: its sockets, its certificate, its signals."""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import socket
import ssl
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import cast

import uvicorn

from inference_engine_proxy_server.backends.registry import discover_engines
from inference_engine_proxy_server.config.api_keys import KeyFileError
from inference_engine_proxy_server.config.file_stamp import stamps_of_settings
from inference_engine_proxy_server.config.settings import Settings
from inference_engine_proxy_server.config.sources import SettingsError
from inference_engine_proxy_server.fleet.fleet_updater import UnknownEngineError, check_engines
from inference_engine_proxy_server.processes.host import (
    ACCEPT_BACKLOG,
    Host,
    SharedPort,
    announce,
    listen,
    raise_file_limit,
    url_of,
)
from inference_engine_proxy_server.processes.supervisor import Supervisor
from inference_engine_proxy_server.processes.worker import Worker, WorkerContext
from inference_engine_proxy_server.proxy import Proxy
from inference_engine_proxy_server.telemetry.logs import configure_logging

__all__ = ["run"]

_REASONS_NOT_TO_START = (KeyFileError, UnknownEngineError, OSError)

logger = logging.getLogger(__name__)


def run(
    settings: Settings,
    on_started: Callable[[str], None] | None = None,
    load: Callable[[], Settings] | None = None,
) -> int:
    """Serve until SIGINT or SIGTERM, which do nothing more to this process after that.

    Args:
        settings: with at least one backend.
        load: reads the settings again, so that a changed fleet is taken up; ``None``: it never changes.
        on_started: called with our base URL once requests are answered; ``None``: nobody wants to know.

    Returns:
        The process's exit code: 0 after a stop that was asked for, 1 if an address cannot be
        listened on, or the certificate, the file of keys or an engine that the fleet states cannot be used.
    """
    configure_logging(settings.log_level, settings.log_format)
    raise_file_limit()
    # uvicorn raises the signals it caught once more when it is done; being told to stop is no reason to die of it.
    # And SIGHUP, which asks for a reading of the settings, must not end what has only begun to read them.
    for number in (signal.SIGINT, signal.SIGTERM, *((signal.SIGHUP,) if load is not None else ())):
        signal.signal(number, lambda *_: None)
    with ExitStack() as stack:
        try:
            _check_certificate(settings.tls_cert_file, settings.tls_key_file)
            serve = _prepared(settings, on_started, load, stack)
        except _REASONS_NOT_TO_START as error:
            logger.error("%s", error)
            return 1
        _warn_of_open_port(settings)
        return serve()


def _prepared(
    settings: Settings,
    on_started: Callable[[str], None] | None,
    load: Callable[[], Settings] | None,
    stack: ExitStack,
) -> Callable[[], int]:
    """What serves, with everything that it needs at hand; raises what :func:`run` tells as the reason not to start."""
    if settings.workers > 1:
        return make_supervisor(settings, on_started, load).run
    listener = stack.enter_context(listen("PORT", settings.host, settings.port))
    operators = None
    if settings.admin_port is not None:
        operators = stack.enter_context(listen("ADMIN_PORT", settings.host, settings.admin_port))
    host = make_host(settings, on_started, operators, load)

    def serve() -> int:
        host.run(sockets=[listener])
        return 0

    return serve


def make_supervisor(
    settings: Settings, on_started: Callable[[str], None] | None, load: Callable[[], Settings] | None
) -> Supervisor:
    """Several processes that serve together; arguments as for :func:`run`."""
    if sys.platform != "linux":
        raise OSError("WORKERS above 1 needs Linux, whose kernel spreads connections over several sockets of one port")
    addresses = [("PORT", settings.port), ("ADMIN_PORT", settings.admin_port)]
    ports = [SharedPort(name, settings.host, port) for name, port in addresses if port is not None]
    Proxy(settings, load)  # only to see now that it can be made
    is_tls = settings.tls_cert_file is not None

    def serve(context: WorkerContext) -> int:
        configure_logging(settings.log_level, settings.log_format, context.siblings.number)
        try:
            proxy = Proxy(context.settings, load, context)
        except _REASONS_NOT_TO_START as error:  # a file that has become unusable since the start
            logger.error("%s", error)
            return 1
        Worker(_hosting(settings, proxy), proxy, context).run(sockets=[context.listeners[0]])
        return 0

    def on_all_started() -> None:
        url, *operators_url = (url_of(port.address, is_tls=is_tls) for port in ports)
        announce(url, operators_url[0] if operators_url else None, on_started)

    return Supervisor(settings, ports, serve, _watching(settings, load), on_all_started)


def _watching(settings: Settings, load: Callable[[], Settings] | None) -> Callable[[], Settings | None]:
    """Gives the settings whenever they have changed since the last time, if they can be used."""
    stamps = stamps_of_settings(settings.config_file)

    def read_again() -> Settings | None:
        nonlocal stamps
        before, stamps = stamps, stamps_of_settings(settings.config_file)
        if load is None or stamps == before:
            return None
        try:
            changed = load()
            check_engines(changed.fleet, discover_engines())
        except (SettingsError, UnknownEngineError):  # the workers tell of it
            return None
        except Exception:  # as in them, it must not end what goes on
            logger.exception("settings cannot be read again")
            return None
        return changed

    return read_again


def _check_certificate(certificate: str | None, key: str | None) -> None:
    """Raises ``OSError`` that names the settings, where uvicorn would only say what OpenSSL says."""
    if certificate is not None:
        try:
            # With a password given, OpenSSL does not ask the terminal for one.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: "")
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            reason = (isinstance(error, OSError) and error.strerror) or error
            raise OSError(f"TLS_CERT_FILE {certificate}, TLS_KEY_FILE {key}: {reason}") from error


def _warn_of_open_port(settings: Settings) -> None:
    is_loopback = settings.host == "localhost" or settings.host.startswith("127.") or settings.host == "::1"
    if not is_loopback and not settings.api_keys and settings.api_keys_file is None:
        logger.warning(
            "everybody who reaches HOST %s can use the engines: set API_KEYS, or let a proxy in front ask for keys",
            settings.host,
        )


def make_host(
    settings: Settings,
    on_started: Callable[[str], None] | None = None,
    operators: socket.socket | None = None,
    load: Callable[[], Settings] | None = None,
) -> uvicorn.Server:
    """The server that hosts everything, ready to ``run`` or ``serve`` on sockets that it is given.

    Args:
        on_started: as for :func:`run`.
        operators: listens on ADMIN_PORT; ``None``: there is none.
        load: as for :func:`run`.
    """
    proxy = Proxy(settings, load)
    return Host(_hosting(settings, proxy), proxy, on_started, operators)


def _hosting(settings: Settings, proxy: Proxy) -> uvicorn.Config:
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
